# shellcheck shell=bash
# Sourced by the scripts beside it: brings Debian packages and Rust's own tools onto the machine, only what is missing,
# and says so.

# need_packages WHY PACKAGE...: returns 1, having said why, when one can't be installed.
need_packages() {
    local why=$1 package missing=()
    shift
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        echo "$why needs, by the names Debian gives them: $*. This machine has no apt-get: see that they are there" >&2
        return 0
    fi
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} != 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        echo "$why needs packages that are missing; as root: apt-get install ${missing[*]}" >&2
        return 1
    fi
    echo "installing ${missing[*]} ($why)"
    packages_install "${missing[@]}" || { packages_refresh && packages_install "${missing[@]}"; } || {
        echo "apt-get could not install ${missing[*]}, which $why needs" >&2
        return 1
    }
}

# Package lists may be absent or stale: then the first attempt fails, and they are fetched before the second.
packages_install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" </dev/null >/dev/null; }
packages_refresh() { apt-get update -q </dev/null >/dev/null; }

need_cargo() {
    [ -n "${CARGO_HOME:-}" ] || [ ! -d "${HOME:-/root}/.cargo/bin" ] || PATH=$PATH:${HOME:-/root}/.cargo/bin
    command -v cargo >/dev/null && return
    echo "cargo is missing: install Rust from https://rustup.rs" >&2
    return 1
}

# need_component CARGO-COMMAND COMPONENT: e.g. fmt rustfmt
need_component() {
    cargo "$1" --version >/dev/null 2>&1 && return
    if ! command -v rustup >/dev/null; then
        echo "cargo $1 is missing: add $2 to this machine's Rust" >&2
        return 1
    fi
    echo "adding $2 to Rust"
    rustup component add "$2"
}
