# shellcheck shell=bash
# The machine under the lab: what it needs, whether it can, which Debian mirror it uses.

MACHINE_PACKAGES=(lxc debootstrap e2fsprogs iproute2 nftables openssh-client debian-archive-keyring mount util-linux procps tar)

cannot() { # the exit code test runners read as "skipped"
    printf 'lab: cannot run here: %s\n' "$*" >&2
    exit 77
}

machine_check() {
    local tool
    for tool in lxc-start lxc-attach lxc-info debootstrap mkfs.ext4 losetup ip tc nft ssh ssh-keygen flock unshare; do
        command -v "$tool" >/dev/null || cannot "$tool is missing; 'lab deps' installs what is needed"
    done
    [ -c /dev/loop-control ] || modprobe -q loop 2>/dev/null || true
    [ -c /dev/loop-control ] || cannot "no loop devices (/dev/loop-control is missing)"
    flock "$MACHINE_LOCK" losetup --find >/dev/null 2>&1 || cannot "no free loop device can be had"
    grep -q ' /sys/fs/cgroup' /proc/self/mounts || cannot "no cgroup hierarchy is mounted"
    nft list tables >/dev/null 2>&1 || cannot "nftables is refused by this kernel"
    unshare --mount --net true 2>/dev/null || cannot "mount and network namespaces are refused"
}

machine_deps() {
    local package missing=()
    for package in "${MACHINE_PACKAGES[@]}"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    if [ ${#missing[@]} = 0 ]; then
        say "deps: nothing is missing"
        return
    fi
    command -v apt-get >/dev/null || cannot "${missing[*]} missing, and there is no apt-get to install them"
    say "deps: installing ${missing[*]}"
    [ -n "$(find /var/lib/apt/lists -maxdepth 1 -name '*Packages*' -print -quit 2>/dev/null)" ] || apt-get update -q
    apt_install "${missing[@]}" || { apt-get update -q && apt_install "${missing[@]}"; } ||
        cannot "apt-get could not install ${missing[*]}"
}

apt_install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"; }

# The archives of the suite this machine itself uses, as "URI SUITE COMPONENT" lines; the public mirror if it uses none.
machine_archives() {
    local used
    # shellcheck disable=SC2016 # apt-get's own placeholders
    used=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) main' 'Created-By: Packages' 2>/dev/null |
        awk -v suite="$LAB_SUITE" '$2 == suite || index($2, suite "-") == 1' | sort -u) || true
    if [ -n "${LAB_MIRROR:-}" ]; then
        echo "$LAB_MIRROR $LAB_SUITE main"
    elif [ -n "$used" ]; then
        echo "$used"
    else
        echo "http://deb.debian.org/debian $LAB_SUITE main"
        echo "http://deb.debian.org/debian-security $LAB_SUITE-security main"
    fi
}

machine_mirror() { machine_archives | awk -v suite="$LAB_SUITE" '$2 == suite { print $1; exit }'; }

# How this machine reaches its archives (proxy, date checks), and limits so that a cut network fails soon.
machine_apt_conf() {
    apt-config dump --format '%F "%v";%n' | grep -E '^Acquire::(http|https|Check-Valid-Until|Check-Date)[: ]' || true
    printf 'Acquire::http::Timeout "20";\nAcquire::https::Timeout "20";\nAcquire::Retries "1";\n'
}

machine_resolv_conf() { # a resolver on the machine's own loopback would not answer the hosts
    if grep -q '^nameserver 127\.' /etc/resolv.conf && [ -f /run/systemd/resolve/resolv.conf ]; then
        cat /run/systemd/resolve/resolv.conf
    else
        cat /etc/resolv.conf
    fi
}
