# shellcheck shell=sh
# Sourced by the scripts beside it, from the project's root: make_venv FILE... makes the virtual environment
# .venv (or $SIDECAR_VENV) where there is none, installs the requirement files where they have changed since,
# and sets $python to its interpreter. Needs a python3 of 3.11 or newer, and PyPI for the packages.

fail() {
  echo "$0: $1" >&2
  exit 1
}

find_python() {
  for candidate in python3 python3.11 python3.12 python3.13 python3.14; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

run_pip() {
  if "$python" -m pip --version >/dev/null 2>&1; then
    "$python" -m pip "$@"
  else
    "$(find_python)" -m pip --python "$python" "$@"
  fi
}

make_venv() {
  venv=${SIDECAR_VENV:-.venv}
  python=$venv/bin/python
  if ! "$python" -c '' 2>/dev/null; then
    found=$(find_python)
    [ -n "$found" ] || fail "needs Python 3.11 or newer; python3 is $(python3 --version 2>&1)"
    echo "Making a virtual environment in $venv"
    # Debian and Ubuntu keep the pip for new environments in a package of its own; python3's pip will do as well.
    "$found" -m venv --clear "$venv" >/dev/null 2>&1 || {
      "$found" -m pip --version >/dev/null 2>&1 &&
        "$found" -m venv --clear --without-pip "$venv"
    } || fail "$found can make no virtual environment; on Debian and Ubuntu: apt-get install python3-venv"
  fi
  for file in "$@"; do # one by one: a file with hashes would ask for hashes in all
    installed=$venv/installed-$(echo "$file" | tr / -)
    if ! cmp -s "$file" "$installed"; then
      echo "Installing $file"
      run_pip install --quiet --disable-pip-version-check -r "$file" || fail "installing $file failed"
      cp "$file" "$installed"
    fi
  done
}
