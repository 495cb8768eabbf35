#!/bin/sh
# Lint, types and tests; makes its own virtual environment. tests/README.md says more.
#   sh tests/run.sh            what a change needs: lint, types, and the quick tests in unit and agent
#   sh tests/run.sh all        everything, with coverage, as CI does
#   sh tests/run.sh -k drain   any other arguments are pytest's
# Docker tests are skipped where no engine or base image is found, and say so; with REQUIRE_DOCKER=1
# that is a failure, as is a missing Consul with REQUIRE_CONSUL=1.
set -eu
unset PYTHONDONTWRITEBYTECODE # each worker would rewrite the asserts of all tests anew
CDPATH='' cd -- "$(dirname -- "$0")/.."
. tests/venv.sh
make_venv requirements.txt tests/requirements.txt

status=0

# run_tests WORKERS ARGUMENTS...: a machine that is too busy breaks promises of seconds. So a few
# failures are tried once more, and named in the summary; one more fails the run.
run_tests() {
  workers=$1
  shift
  "$@" --numprocesses "$workers" --reruns 1 --reruns-delay 2 --max-suite-reruns 5 || status=1
}

case "${1:-}" in
  "" | all) ;;
  *) exec "$python" -m pytest "$@" ;;
esac
[ $# -le 1 ] || fail "usage: sh tests/run.sh [all | ARGUMENTS OF PYTEST]"

echo "Lint and types"
"$python" -m ruff check .
"$python" -m ruff format --check .
find . -name .venv -prune -o -name '*.sh' -print0 | xargs -0 "$venv/bin/shellcheck" -x .ci/run
"$python" -m mypy agent.py healthcheck.py docker/*.py tests

quick="not slow and not docker"
if [ $# -eq 0 ]; then
  run_tests 16 "$python" -m pytest --dist worksteal -m "$quick" tests/unit tests/agent
else
  echo "Quick tests, with the coverage of agent.py and healthcheck.py in all their processes"
  "$python" -m coverage erase
  run_tests 8 "$python" -m coverage run -m pytest --dist worksteal -m "$quick"
  "$python" -m coverage combine --quiet || status=1
  "$python" -m coverage report || status=1
  echo "Slow tests, and those on a Docker engine"
  run_tests 3 "$python" -m pytest --dist loadfile --durations 10 -m "slow or docker"
fi
exit "$status"
