#!/usr/bin/env bash
# Runs one lane of tests, or reuses its result when none of its inputs changed.
# usage: scripts/lane.sh NAME INPUT... -- COMMAND [ARG...]   (FRESH=1 runs it in any case)
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1
shift
inputs=()
while [ "$1" != "--" ]; do
    inputs+=("$1")
    shift
done
shift
stamp=".build/lanes/$name"
mkdir -p "$(dirname "$stamp")"
key=$({
    printf '%s\n' "$*"
    git ls-files -z --cached --others --exclude-standard -- "${inputs[@]}" | sort -zu |
        while IFS= read -r -d '' file; do [ -f "$file" ] && sha256sum "$file"; done
} | sha256sum | cut -d' ' -f1)
if [ "${FRESH:-}" != 1 ] && [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then
    printf '== lane %s: inputs unchanged, last result holds (FRESH=1 runs it again)\n' "$name"
    exit 0
fi
printf '== lane %s\n' "$name"
started=$SECONDS
"$@"
printf '%s\n' "$key" >"$stamp"
printf '== lane %s: passed in %d s\n' "$name" $((SECONDS - started))
