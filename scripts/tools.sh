#!/usr/bin/env bash
# The lane with the real tools, seconds each: packer validate, ansible-lint, mmdebstrap, disks, the shim, Go.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
python -m pytest tests/tools -n 2 "$@"
