#!/bin/sh
# The demo: sets up what it needs, then runs the sidecar through its story in about 20 s. No Docker, any free ports.
#   sh tests/demo.sh [--consul]      --consul: with a real Consul as the registry, where one is on the PATH
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."
. tests/venv.sh
make_venv requirements.txt
export PYTHONPATH=tests
exec "$python" -m demo "$@"
