#!/bin/sh
# Runs a command while containerd answers: the one of systemd, or, where no systemd runs, one for that time only.
# usage: with-containerd.sh CONTAINERD_BINARY COMMAND [ARGUMENT...]
set -eu
binary=$1
shift
log=/run/build-image-containerd.log

answers() { timeout 10 ctr version >/dev/null 2>&1; }

wait_for_answer() { # 60 s: a slow guest needs 10
    tries=0
    until answers; do
        tries=$((tries + 1))
        if [ "$tries" -gt 120 ]; then
            echo 'containerd does not answer' >&2
            [ ! -e "$log" ] || tail -n 20 "$log" >&2
            exit 1
        fi
        sleep 0.5
    done
}

if [ -d /run/systemd/system ]; then
    systemctl start containerd
    wait_for_answer
    exec "$@" </dev/null
fi

"$binary" --config /etc/containerd/config.toml >"$log" 2>&1 </dev/null &
containerd=$!
trap 'kill "$containerd" 2>/dev/null && wait "$containerd" || :' EXIT
wait_for_answer
"$@" </dev/null
