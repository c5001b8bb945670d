#!/usr/bin/env bash
# The quick lane: format, lint, types, shell scripts, unit tests.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
ruff format --check --quiet .
ruff check --quiet .
mypy --no-error-summary
python scripts/reference.py --check
git ls-files -z '*.sh' '.ci/run' | xargs -0 shellcheck
python -m pytest tests/unit -n 2
