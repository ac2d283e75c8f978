#!/usr/bin/env bash
# Runs eo-mount beside its peers. `make bench` installs them first.
#
# ONLY="tile patch" runs the cases whose names have one of these words; RUNS=5 says how often; KEEP=1 leaves the big files.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --release --locked --package eo-mount --package eo-mount-bench
exec "${CARGO_TARGET_DIR:-target}/release/eo-mount-bench"
