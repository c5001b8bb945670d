#!/usr/bin/env bash
# The lane with the real thing: builds the image as a user does, boots it, runs kubeadm init on it; breaks builds.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
export BUILD_IMAGE_STATE="$PWD/.build/state"
scripts/image.sh --output .build/image
BUILD_IMAGE_TEST_IMAGE="$PWD/.build/image" python -m pytest tests/image "$@"
