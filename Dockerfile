# The registry sidecar's image:
#
#   docker build -t vertice-registry-sidecar:latest .
#   docker build -t vertice-registry-sidecar:latest --build-arg TLS=1 .    for an https registry
#
# The builder gathers a root file system with python, busybox and the modules that the two scripts
# load (docker/rootfs.py), and tries it out (docker/smoke.sh). The image is that and nothing else,
# FROM scratch: a final FROM of some Alpine would break as soon as its musl is older than the
# builder's. What is published somewhere says where it comes from:
#   --build-arg REVISION=… --build-arg SOURCE=https://…
ARG VERSION=1.1.0
# Another base, such as one by its digest: --build-arg BASE=python:3.11-alpine@sha256:…
ARG BASE=python:3.11-alpine
FROM $BASE AS builder
# The classic builder leaves this stage behind:
#   docker image prune --filter label=vertice-registry-sidecar=builder
LABEL vertice-registry-sidecar=builder
COPY requirements.txt /build/
RUN pip install --require-hashes --only-binary :all: --no-compile --no-cache-dir \
    --disable-pip-version-check --root-user-action ignore -r /build/requirements.txt
COPY docker /build/docker
COPY agent.py healthcheck.py /app/
ARG TLS=0
ARG VERSION
# Byte code without column numbers, which only show where the source is: 0.26 MB. One time stamp
# for all, so that the same input makes the same layer.
RUN python -X no_debug_ranges /build/docker/rootfs.py "$TLS" \
    && chroot /rootfs /bin/sh -s "$TLS" "$VERSION" </build/docker/smoke.sh \
    && find /rootfs -exec touch -h -d @0 {} +

FROM scratch
ARG VERSION
ARG REVISION=
ARG SOURCE=
LABEL org.opencontainers.image.title="vertice-registry-sidecar" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION" \
    org.opencontainers.image.source="$SOURCE" \
    org.opencontainers.image.description="Keeps the service beside it registered in a registry"
COPY --from=builder /rootfs /
ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8
WORKDIR /app
USER 1000:1000
# Healthy means that the loop is alive. With `--ready` after it: registered, for who waits for that.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-I", "-S", "/app/healthcheck.pyc"]
# Byte code: a user who may not write cannot keep what Python compiles, 40 ms of CPU at each start.
ENTRYPOINT ["python", "-I", "/app/agent.pyc"]
