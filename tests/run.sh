#!/bin/sh
# Lint, types and tests; makes its own virtual environment. sh tests/run.sh: everything, with coverage; sh tests/run.sh
# fast: without what is slow or needs Docker. Docker tests are skipped where no engine or base image is found, and say
# so; with REQUIRE_DOCKER=1 that is a failure.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."
. tests/venv.sh
make_venv requirements.txt tests/requirements.txt tests/bench/requirements.txt tests/fleet/requirements.txt

echo "Lint and types"
"$python" -m ruff check .
"$python" -m mypy agent.py healthcheck.py docker/*.py tests

if [ "${1:-}" = fast ]; then
  exec "$python" -m pytest -n 16 -m "not slow and not docker" # most of them wait most of the time
fi

echo "Fast tests, with the coverage of agent.py and healthcheck.py in all processes that they start"
"$python" -m coverage erase
"$python" -m coverage run -m pytest -n 12 -m "not slow and not docker"
"$python" -m coverage combine --quiet
"$python" -m coverage report

echo "Slow tests, and those on a Docker engine"
"$python" -m pytest -n 4 --dist loadfile -m "slow or docker" --durations 10
