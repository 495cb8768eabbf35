#!/bin/sh
# Lint, types and tests; makes its own virtual environment. sh tests/run.sh: everything, with coverage; sh tests/run.sh
# fast: without what is slow or needs Docker. Docker tests are skipped where no engine or base image is found, and say
# so; with REQUIRE_DOCKER=1 that is a failure.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."
. tests/venv.sh
make_venv requirements.txt tests/requirements.txt tests/bench/requirements.txt tests/fleet/requirements.txt

fast="not slow and not docker"

# A machine that is too busy breaks promises of seconds; what fails on a quiet one, too, has failed.
again() {
  echo "What failed is tried once more, one test at a time"
  "$python" -m pytest -m "$1" --last-failed --last-failed-no-failures none
}

echo "Lint and types"
"$python" -m ruff check .
"$python" -m mypy agent.py healthcheck.py docker/*.py tests

if [ "${1:-}" = fast ]; then # many at once, for most of them wait most of the time
  "$python" -m pytest -n 12 --dist worksteal -m "$fast" || again "$fast"
  exit
fi

echo "Fast tests, with the coverage of agent.py and healthcheck.py in all processes that they start"
"$python" -m coverage erase
"$python" -m coverage run -m pytest -n 10 --dist worksteal -m "$fast" || again "$fast"
"$python" -m coverage combine --quiet
"$python" -m coverage report

echo "Slow tests, and those on a Docker engine"
"$python" -m pytest -n 4 --dist loadfile -m "slow or docker" --durations 10 || again "slow or docker"
