#!/usr/bin/env bash
# Mounts a sample dataset from a registry on this machine and reads it: `make demo`.
#
# Works in target/demo and cleans up after itself. KEEP=1 leaves the mount and the registry running.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/packages.sh

WORK=target/demo
MNT=$WORK/mnt
VENV=$WORK/venv
SAMPLE=$WORK/sample
PICTURE=$WORK/quicklook.png
EO_MOUNT=${CARGO_TARGET_DIR:-target}/release/eo-mount
PYTHON=/usr/bin/python3
PATCH=10001
KEEP=${KEEP:-}
export PYTHONDONTWRITEBYTECODE=1

registry=""

main() {
    mkdir -p "$WORK"
    refuse_leftovers
    trap finish EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 141' PIPE
    trap 'exit 143' TERM

    install
    build
    if make_venv "$PYTHON" "$VENV" sample/requirements.txt "$WORK/pip.log" && make_full_sample && start_registry && push; then
        mount_dataset "localhost:$port/pastis-2433:sample"
        look
        report_traffic
    else
        say "Without these, the small sample that comes with eo-mount must do"
        mount_dataset oci:sample/pastis:sample
        look
    fi
}

say() {
    printf '\n==> %s\n' "$*"
}

# Shows a command as one would type it, wherever its output goes, and runs it.
exec 3>&1
run() {
    local word line=""
    for word in "$@"; do
        case $word in
            *[\"\$\`\\]*) word=${word@Q} ;;
            *[!A-Za-z0-9_@%+=:,./-]*) word="\"$word\"" ;;
        esac
        line+=" $word"
    done
    echo "    \$$line" >&3
    "$@" 3>&-
}

mounted() {
    findmnt -n --mountpoint "$PWD/$MNT" >/dev/null
}

refuse_leftovers() {
    local pid=""
    if [ -f "$WORK/registry.pid" ]; then pid=$(cat "$WORK/registry.pid"); fi
    # The number may be another program's by now.
    grep -qs "$WORK/registry.yml" "/proc/$pid/cmdline" || pid=""
    if [ -n "$pid" ] || mounted; then
        echo "Another demo is still there. To end it:"
        tell_how_to_end "$pid"
        exit 1
    fi
    rm -rf "$WORK/registry" "$WORK/registry.pid" "$WORK/cache"
}

install() {
    local missing=()
    have cc || missing+=(build-essential)
    have docker-registry || missing+=(docker-registry)
    have fusermount3 || missing+=(fuse3)
    have gdalinfo || missing+=(gdal-bin)
    have skopeo || missing+=(skopeo)
    can_make_venv "$PYTHON" || missing+=(python3-venv)
    install_packages "$WORK/apt.log" "${missing[@]}" || say "Going on with what there is"
    if ! have fusermount3; then
        echo "Nothing can be mounted without fusermount3: apt-get install fuse3"
        exit 1
    fi
}

build() {
    say "Building eo-mount"
    have_cargo
    run cargo build --release
}

make_full_sample() {
    local source newer=""
    for source in sample/*.py sample/requirements.txt; do
        if [ "$source" -nt "$SAMPLE/index.json" ]; then newer=1; fi
    done
    [ -n "$newer" ] || return 0
    say "Making three patches at full size"
    rm -rf "$SAMPLE" "$SAMPLE.part"
    run "$VENV/bin/python" sample/make_sample.py --layout "$SAMPLE"
}

start_registry() {
    if ! have docker-registry || ! have skopeo; then
        say "docker-registry or skopeo is missing"
        return 1
    fi
    port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    cat >"$WORK/registry.yml" <<END
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $WORK/registry}}
http: {addr: "127.0.0.1:$port"}
END
    say "Starting a registry on port $port"
    printf '    $ docker-registry serve %s &\n' "$WORK/registry.yml"
    docker-registry serve "$WORK/registry.yml" </dev/null >"$WORK/registry.log" 2>&1 3>&- &
    registry=$!
    echo "$registry" >"$WORK/registry.pid"
    local try
    for try in $(seq 100); do
        if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then return 0; fi
        kill -0 "$registry" 2>/dev/null || break
        sleep 0.1
    done
    echo "    It does not answer after $try tries ($WORK/registry.log says why)."
    return 1
}

push() {
    say "Pushing the dataset to it"
    # skopeo compresses layers unless it is told to keep their digests.
    run skopeo --insecure-policy copy --quiet --preserve-digests --dest-tls-verify=false \
        "oci:$SAMPLE:sample" "docker://localhost:$port/pastis-2433:sample"
}

mount_dataset() {
    say "Mounting it"
    mkdir -p "$MNT"
    # A cache of its own, so that the count of bytes at the end is that of a first visit.
    export EO_MOUNT_CACHE_DIR=$PWD/$WORK/cache
    local start end
    start=$(date +%s%N)
    run "$EO_MOUNT" "$1" "$MNT"
    end=$(date +%s%N)
    echo "    mounted after $(((end - start) / 1000000)) ms"
}

look() {
    local series=$MNT/$PATCH/DATA_S2/S2_$PATCH.npy image python=$VENV/bin/python
    say "Listing it"
    run ls "$MNT"
    run find "$MNT/$PATCH" -type f -printf '%10s  %P\n'

    say "One Sentinel-2 date: its mean"
    if "$python" -c 'import numpy' 2>/dev/null; then
        run "$python" -c "import numpy; print(numpy.load('$series', mmap_mode='r')[5].mean())"
    else
        echo "    numpy is not here; the array's header instead:"
        run head -c 128 "$series" | grep -ao '{.*}'
    fi

    image=$(echo "$MNT/$PATCH"/DATA_SPOT/*/*.tif)
    if have gdalinfo; then
        say "The SPOT image: its place and form"
        printf '    $ gdalinfo %q\n' "$image"
        gdalinfo "$image" | grep -E '^(Driver|Size|PROJCRS|Origin|Pixel Size|Upper Left|Lower Right|Band)|ID\["EPSG",2154\]'
    fi
    if "$python" -c 'import numpy, rasterio' 2>/dev/null; then
        say "A picture of both"
        run "$python" sample/quicklook.py "$MNT/$PATCH" "$PICTURE"
    fi
}

report_traffic() {
    say "What was downloaded for all this"
    "$PYTHON" - "$MNT" <<'END'
import json, os, sys

stats = json.loads(os.getxattr(sys.argv[1], "user.eo.stats"))
total, network = stats["dataset_bytes"], stats["network"]
share = 100 * network["bytes"] / total
print(f"    {network['bytes'] / 1e6:.1f} MB of {total / 1e6:.1f} MB ({share:.0f} %), in {network['requests']} requests")
END
}

tell_how_to_end() {
    if mounted; then echo "    fusermount3 -u $MNT"; fi
    if [ -n "$1" ]; then echo "    kill $1"; fi
}

finish() {
    local status=$?
    trap - EXIT
    trap '' HUP INT PIPE TERM
    set +e # whatever fails here, the rest is cleaned up
    if [ "$status" -eq 0 ] && [ -n "$KEEP" ] && [ "$KEEP" != 0 ]; then
        say "Still there: $MNT${registry:+, and the registry at localhost:$port}. To end it:"
        tell_how_to_end "$registry"
        exit 0
    fi
    if mounted; then
        say "Cleaning up"
        run fusermount3 -u "$MNT" || fusermount3 -u -z "$MNT"
    fi
    if [ -n "$registry" ]; then
        kill "$registry"
        wait "$registry"
    fi
    rm -rf "$WORK/registry" "$WORK/registry.pid" "$WORK/cache"
    exit "$status"
}

main
