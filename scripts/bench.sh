#!/usr/bin/env bash
# Runs eo-mount beside its peers. `make bench` installs them first.
#
# ONLY="tile patch" runs the cases whose names have one of these words; RUNS="5 soak=1" says how often; SECONDS=600 how long the
# soak takes; DOCS=docs where the figures go; KEEP=1 leaves the big files.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")

cargo build --release --locked --package eo-mount --package eo-mount-bench

# Mounts and caches, which would outlive an interrupted run.
mkdir -p target/bench
TMPDIR=$(mktemp -d "$PWD/target/bench/.tmp.XXXXXX")
export TMPDIR
# For what is not to wait for a disk.
IN_MEMORY=$(mktemp -d /dev/shm/eo-mount-bench.XXXXXX)
export IN_MEMORY
bench=
end() {
    [ -z "$bench" ] || kill "$bench" 2>/dev/null || true
    while read -r _ mountpoint _; do
        case $mountpoint in "$TMPDIR"/*) fusermount3 -uz "$mountpoint" || true ;; esac
    done </proc/self/mounts
    rm -rf target/bench/.tmp* "$IN_MEMORY"
}
trap end EXIT
trap 'exit 130' INT TERM
"$target/release/eo-mount-bench" &
bench=$!
wait "$bench"
