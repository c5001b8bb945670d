#!/bin/sh
# Installs every file of a folder into another one; prints the name of each file that was not there as it should be.
# usage: install-files.sh copy|link SOURCE TARGET
#   copy  as programs, mode 0755; a file with other content is replaced
#   link  as symbolic links, so that updates of the source are seen; a name that exists already is left alone
set -eu
how=$1 source=$2 target=$3
[ -d "$source" ] || { echo "$source does not exist" >&2; exit 1; }

for file in "$source"/*; do
    name=${file##*/}
    if [ "$how" = link ]; then
        if [ -e "$target/$name" ]; then continue; fi
        ln -s "$file" "$target/$name"
    else
        if cmp -s "$file" "$target/$name"; then continue; fi
        install -m 0755 "$file" "$target/$name"
    fi
    echo "$name"
done
