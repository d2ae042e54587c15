# shellcheck shell=bash
# The golden image: a plain Debian host's disk, made once per package list and copied for every host.

# What a host has from the start. Nothing that tallybook installs on a host may be named here.
HOST_PACKAGES=(systemd systemd-sysv dbus libpam-systemd openssh-server iproute2 iputils-ping procps netbase)
# What tallybook installs: fetched with all it depends on and recommends, but not installed.
FETCHED_PACKAGES=(lxc debootstrap dnsmasq-base dnsmasq-utils nftables uidmap rsync zstd acl attr busybox-static ca-certificates sudo)
# A minimal container's own packages, fetched for debootstrap --cache-dir on a host.
NESTED_PACKAGES=(systemd-sysv dbus openssh-server iproute2 iputils-ping isc-dhcp-client ifupdown netbase ca-certificates)
NESTED_DEBS=/var/cache/tallybook-lab/debs
# Jobs that would change a host while nobody looks.
MASKED_UNITS=(apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer systemd-tmpfiles-clean.timer)

image_path() { # named by everything that decides what is in it
    local hash
    hash=$({
        echo "$LAB_SUITE $LAB_DISK ${HOST_PACKAGES[*]} / ${FETCHED_PACKAGES[*]} / ${NESTED_PACKAGES[*]} / ${MASKED_UNITS[*]}"
        machine_archives
        declare -f image_fill image_settle
    } | sha256sum)
    echo "$LAB_CACHE/golden-$LAB_SUITE-${hash:0:12}.ext4"
}

image_build() {
    local golden part
    golden=$(image_path)
    [ -s "$golden" ] && return
    mkdir -p "$LAB_CACHE/debs"
    (
        flock 8 # another lab may be building into the same cache
        [ -s "$golden" ] && exit 0
        say "building $golden (about three minutes; log: $LAB_CACHE/build.log)"
        part=$golden.part
        rm -f "$LAB_CACHE"/*.part
        truncate -s "$LAB_DISK" "$part"
        mkfs.ext4 -q -F -m 0 -E lazy_itable_init=1,lazy_journal_init=1 "$part"
        on_disk "$part" image_fill >"$LAB_CACHE/build.log" 2>&1 || { tail -n 20 "$LAB_CACHE/build.log" >&2; die "the image could not be built"; }
        e2fsck -fp "$part" >/dev/null || [ $? = 1 ]
        mv "$part" "$golden"
    ) 8>"$LAB_CACHE/.lock"
}

image_clean() {
    [ -d "$LAB_CACHE" ] || return 0
    rm -rf "$LAB_CACHE"
    say "clean: $LAB_CACHE removed"
}

image_fill() { # ROOT: everything that goes on the disk
    local root=$1 mirror include
    mirror=$(machine_mirror)
    include=$(IFS=,; echo "${HOST_PACKAGES[*]}")
    debootstrap --variant=minbase --cache-dir="$LAB_CACHE/debs" --include="$include" "$LAB_SUITE" "$root" "$mirror"

    machine_archives | sed 's/^/deb /' >"$root/etc/apt/sources.list"
    machine_apt_conf >"$root/etc/apt/apt.conf.d/90lab"
    machine_resolv_conf >"$root/etc/resolv.conf"
    chroot "$root" apt-get update -q
    rm -f "$root"/var/cache/apt/archives/*.deb # those of the packages already installed
    DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install -y -q --download-only "${FETCHED_PACKAGES[@]}"

    include=$(IFS=,; echo "${NESTED_PACKAGES[*]}")
    mkdir -p "$root$NESTED_DEBS"
    debootstrap --variant=minbase --download-only --cache-dir="$root$NESTED_DEBS" --include="$include" "$LAB_SUITE" "$root/nested" "$mirror"
    rm -rf "$root/nested"

    image_settle "$root"
}

image_settle() { # ROOT: what turns a Debian root into a lab host
    local root=$1 unit
    for unit in "${MASKED_UNITS[@]}"; do ln -sf /dev/null "$root/etc/systemd/system/$unit"; done
    echo root:100000:65536 | tee "$root/etc/subuid" >"$root/etc/subgid" # the range of unprivileged containers
    echo LANG=C.UTF-8 >"$root/etc/default/locale"
    install -d -m 700 "$root/root/.ssh"
    rm -f "$root"/etc/ssh/ssh_host_* # every host gets its own
    : >"$root/etc/machine-id"        # and makes its own at first boot
    fstrim "$root" || true
}

# on_disk IMAGE FUNCTION ARG...: run FUNCTION with the image's mount point put before its arguments. The mount lives in a
# namespace of its own, so that nothing stays mounted when this is interrupted.
on_disk() { unshare --mount --propagation private "$LAB_SELF" _on-disk "$@"; }

disk_mounted() {
    local image=$1 function=$2 mount_point
    shift 2
    mount_point=$(mktemp -d)
    flock "$MACHINE_LOCK" mount -o loop,noatime "$image" "$mount_point"
    "$function" "$mount_point" "$@"
    umount "$mount_point"
    rmdir "$mount_point"
}
