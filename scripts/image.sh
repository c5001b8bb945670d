#!/usr/bin/env bash
# The main job on real input: a bootable Kubernetes node image, from package registries only.
# usage: scripts/image.sh [more arguments for build-image]
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
job=(build-image --os debian-12 --k8s v1.34.3 --infra qemu --config examples/modules.yaml "$@")
printf '+ %s\n' "${job[*]}" >&2
exec "${job[@]}"
