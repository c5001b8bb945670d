#!/bin/sh
# mmdebstrap essential hook: before the kernel is installed. $1 = root tree, $2 = folder that holds essential/.
set -eu
cp -R --no-preserve=ownership "$2/essential/." "$1/"
