#!/usr/bin/env bash
# down.sh STATE_DIR [--purge]   ends every process in the namespaces that up.sh made, and removes them; with --purge the
# state as well.
set -uo pipefail
STATE=$(realpath -m "${1:?STATE_DIR}") && [ "${#STATE}" -gt 4 ] || exit 2
[ -s "$STATE/prefix" ] || { echo "ssh/down.sh: nothing under $STATE"; exit 0; }
PREFIX=$(cat "$STATE/prefix")
running() { case $(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) in ''|Z) return 1 ;; esac; }
for signal in TERM KILL; do
    pids=$(for h in laptop login node1 node2; do ip netns pids "$PREFIX-$h" 2>/dev/null; done)
    [ -n "$pids" ] || break
    # shellcheck disable=SC2086
    kill -$signal $pids 2>/dev/null
    for pid in $pids; do for _ in $(seq 60); do running "$pid" || break; sleep 0.05; done; done
done
for h in laptop login node1 node2; do ip netns del "$PREFIX-$h" 2>/dev/null; done
rm -f "$STATE/prefix" "$STATE"/run/*
if [ "${2:-}" = --purge ]; then rm -rf "$STATE"; fi
echo "removed the hosts of $STATE"
