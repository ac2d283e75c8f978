#!/usr/bin/env bash
# Installs the peers of the benchmarks that the tests do not need: `make bench-tools`
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/packages.sh

TOOLS=target/tools
# GDAL's module is for Debian's own Python.
PYTHON=/usr/bin/python3
mkdir -p "$TOOLS"

missing=()
have ab || missing+=(apache2-utils)
have curl || missing+=(curl)
have fio || missing+=(fio)
have zstd || missing+=(zstd)
"$PYTHON" -c 'import osgeo.gdal' 2>/dev/null || missing+=(python3-gdal)
can_make_venv "$PYTHON" || missing+=(python3-venv)
install_packages "$TOOLS/apt.log" "${missing[@]}"

make_venv "$PYTHON" "$TOOLS/bench-venv" bench/requirements.txt "$TOOLS/pip.log"
