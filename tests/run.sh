#!/bin/sh
# Lint, types and tests; makes its own virtual environment.
#   sh tests/run.sh        what a change needs: the tests that are neither slow nor on Docker
#   sh tests/run.sh all    all tests, with coverage, as CI does
# Docker tests are skipped where no engine or base image is found, and say so; with REQUIRE_DOCKER=1 that is a failure.
# Those on a real Consul are skipped where none is on the PATH; REQUIRE_CONSUL=1 makes that a failure.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."
. tests/venv.sh
case "$*" in
  "" | all) ;;
  *) fail "usage: sh tests/run.sh [all]" ;;
esac
make_venv requirements.txt tests/requirements.txt tests/fleet/requirements.txt

reports=$(mktemp -d)
trap 'rm -rf "$reports"' EXIT
status=0

# check NAME MARKERS COMMAND...: a machine that is too busy breaks promises of seconds; so what fails is tried once
# more, one test at a time, and named in the last line where it passes then.
check() {
  name=$1 markers=$2
  shift 2
  "$python" "$@" -m "$markers" --junitxml "$reports/$name.1.xml" && return
  echo "What failed is tried once more, one test at a time"
  "$python" -m pytest -m "$markers" --junitxml "$reports/$name.2.xml" \
    --last-failed --last-failed-no-failures none --maxfail 10 || status=1
}

echo "Lint and types"
"$python" -m ruff check .
"$python" -m mypy agent.py healthcheck.py docker/*.py tests

fast="not slow and not docker"
many="-n 12 --dist worksteal" # at once, for most of them wait most of the time
if [ "$*" = all ]; then
  echo "Fast tests, with the coverage of agent.py and healthcheck.py in all processes that they start"
  "$python" -m coverage erase
  check fast "$fast" -m coverage run -m pytest $many
  "$python" -m coverage combine --quiet || status=1
  "$python" -m coverage report || status=1
  echo "Slow tests, and those on a Docker engine"
  check slow "slow or docker" -m pytest -n 4 --dist loadfile --durations 10
else
  check fast "$fast" -m pytest $many
fi
"$python" tests/tally.py "$reports"/*.xml
exit "$status"
