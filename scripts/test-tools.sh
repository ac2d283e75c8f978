#!/usr/bin/env bash
# Installs what the tests need: Debian packages, oras, and a Python environment. `make test-tools`
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/packages.sh

have_cargo

TOOLS=target/tools
ORAS=oras.land/oras/cmd/oras@v1.3.3
mkdir -p "$TOOLS"

# Program and the package that brings it.
missing=()
while read -r program package; do
    have "$program" || missing+=("$package")
done <<'END'
cc build-essential
docker-registry docker-registry
fusermount3 fuse3
gdalinfo gdal-bin
bsdtar libarchive-tools
zstd zstd
pigz pigz
bgzip tabix
bzip2 bzip2
xz xz-utils
zip zip
unzip unzip
file file
findmnt util-linux
setfattr attr
setpriv util-linux
shellcheck shellcheck
END
PYTHON=$(command -v python3 || echo /usr/bin/python3)
can_make_venv "$PYTHON" || missing+=(python3-venv)
install_packages "$TOOLS/apt.log" "${missing[@]}"

make_venv "$PYTHON" "$TOOLS/venv" sample/requirements.txt "$TOOLS/pip.log"

if ! have oras && [ ! -x "$TOOLS/bin/oras" ]; then
    if ! have go; then
        echo "The tests push with oras. Install it (https://oras.land/docs/installation) or Go 1.25, then start again."
        exit 1
    fi
    echo "Building oras"
    GOBIN=$PWD/$TOOLS/bin go install "$ORAS"
fi
