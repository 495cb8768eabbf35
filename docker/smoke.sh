#!/bin/sh
# Try out the gathered root file system, from inside, before it becomes the image:
#   chroot /rootfs /bin/sh -s TLS VERSION <smoke.sh      (0 or 1; what the image's label says)

# expect CODE WORDS COMMAND...: it exits with CODE and prints WORDS, or the build stops.
expect() {
  code=$1 words=$2
  shift 2
  said=$("$@" 2>&1) && got=0 || got=$?
  case $got:$said in
    *Traceback* | *Warning*) ;;
    "$code":*"$words"*) return ;;
  esac
  printf 'smoke: %s: expected %s and %s, got %s and\n%s\n' "$*" "$code" "$words" "$got" "$said"
  exit 1
}

expect 0 "$2" python -I /app/agent.pyc --version
expect 2 "SERVICE_NAME is not set" python -I /app/agent.pyc
expect 1 "no heartbeat file" python -I -S /app/healthcheck.pyc
expect 0 80 python -I -c 'import socket; print(socket.getaddrinfo("127.0.0.1", 80))' # asks for idna
utf="utf-8-sig utf-16 utf-16-be utf-16-le utf-32 utf-32-be utf-32-le"
for codec in ascii latin-1 unicode_escape $utf; do
  expect 0 1 python -I -c "import json; print(json.loads('1'.encode('$codec')))"
done
for name in sh ps wget nslookup ping cat ls; do
  expect 0 "/$name" command -v "$name"
done
if [ "$1" = 1 ]; then
  expect 0 "'x509_ca': 1" python -I -c "import certifi, ssl
print(ssl.create_default_context(cafile=certifi.where()).cert_store_stats())"
else
  expect 2 "TLS=1" env REGISTRY_URL=https://registry python -I /app/agent.pyc
fi
