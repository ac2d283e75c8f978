#!/usr/bin/env bash
# All tests. `make test` installs what they need first.
set -euo pipefail
cd "$(dirname "$0")/.."

export PATH=$PWD/target/tools/bin:$PATH
# Mounts as an ordinary user need the device; a container may come with less than Debian's 0666.
if [ "$(id -u)" -eq 0 ] && [ -e /dev/fuse ]; then
    chmod 666 /dev/fuse
fi

make lint
target/tools/venv/bin/python -m unittest discover --start-directory sample
cargo test --workspace --locked --no-fail-fast
