# shellcheck shell=bash
# Installs Debian packages, or says what to type. To be sourced.

# install_packages LOG PACKAGE…
install_packages() {
    local log=$1 sudo=()
    shift
    [ "$#" -gt 0 ] || return 0
    echo "Installing what is missing: $*"
    if ! command -v apt-get >/dev/null; then
        echo "Please install the like of these Debian packages, then start again: $*"
        return 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
            echo "Please type this, then start again:"
            echo "    sudo apt-get update && sudo apt-get install --no-install-recommends $*"
            return 1
        fi
        sudo=(sudo -n)
    fi
    if ! {
        "${sudo[@]}" apt-get update -q &&
            "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
    } >"$log" 2>&1; then
        echo "That did not work; $log says why."
        return 1
    fi
    # Debian starts servers for everybody when it installs them; this is no place for one.
    local service
    for service in docker-registry nginx; do
        case " $* " in *" $service "*) ;; *) continue ;; esac
        "${sudo[@]}" systemctl disable --now "$service" >/dev/null 2>&1 ||
            "${sudo[@]}" service "$service" stop >/dev/null 2>&1 || true
    done
}

have() {
    command -v "$1" >/dev/null
}

# Ends the script where Rust is missing: no Debian package is new enough.
have_cargo() {
    have cargo && return 0
    echo "Rust is missing: https://rustup.rs says how to install it."
    exit 1
}

# can_make_venv PYTHON
can_make_venv() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null
}

# make_venv PYTHON FOLDER REQUIREMENTS LOG: an environment with these packages, made anew only when they change.
make_venv() {
    cmp -s "$3" "$2/requirements.txt" && return 0
    echo "Installing the Python packages of $3"
    rm -rf "$2"
    if "$1" -m venv "$2" >"$4" 2>&1 &&
        "$2/bin/pip" install --only-binary :all: -r "$3" >>"$4" 2>&1; then
        cp "$3" "$2/requirements.txt"
    else
        echo "The Python environment could not be made; $4 says why."
        return 1
    fi
}
