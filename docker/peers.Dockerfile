# The tests' registry and service, for docker/try.yml; the context is tests/.
FROM python:3.11-alpine
WORKDIR /opt/tests
COPY kit kit
