#!/bin/sh
# The benchmark, as one table: sh tests/bench.sh [--quick] [--before DIRECTORY]
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."
. tests/venv.sh
make_venv requirements.txt tests/requirements.txt
export PYTHONPATH=tests
exec "$python" -m bench.run "$@"
