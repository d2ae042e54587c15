# shellcheck shell=bash
# The hosts: who they are, their disks, their lives, and ways in that do not need the network.

BALLAST=/.lab-ballast # what `fill` puts on a host's disk
HOST_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# --- who they are -----------------------------------------------------------------------------------------------------
# $RUN/hosts has a "name address" line a host; a host's number is its line. The first one is the controller.

host_names() { [ ! -f "$RUN/hosts" ] || cut -d' ' -f1 "$RUN/hosts"; }
host_address() { awk -v name="$1" '$1 == name { print $2 }' "$RUN/hosts"; }
host_number() { awk -v name="$1" '$1 == name { print NR }' "$RUN/hosts"; }
host_known() { host_names | grep -qxF -- "$1" || die "no such host: $1 (there are: $(host_names | xargs))"; }
controller() { host_names | head -n 1; }
lxc_name() { echo "$LAB_BRIDGE-$1"; }
port_of() { echo "$LAB_BRIDGE-p$(host_number "$1")"; } # its end of the cable, on the bridge
disk_of() { echo "$RUN/disks/$1.ext4"; }
host_state() { lxc-info -P "$LXC_PATH" -n "$(lxc_name "$1")" -sH 2>/dev/null || echo ABSENT; }
host_running() { [ "$(host_state "$1")" = RUNNING ]; }
host_pid() { lxc-info -P "$LXC_PATH" -n "$(lxc_name "$1")" -pH; }

host_enrol() { # NAME...: enter new names in the roster, and make what they are known by
    local name address
    mkdir -p "$RUN/hostkeys" "$RUN/disks" "$RUN/snapshots" "$LXC_PATH"
    chmod 700 "$RUN"
    touch "$RUN/hosts"
    [ -f "$RUN/id_ed25519" ] || ssh-keygen -q -t ed25519 -N '' -C "operator of the lab" -f "$RUN/id_ed25519"
    for name in "$@"; do
        [[ $name =~ ^[a-z][a-z0-9-]{0,30}$ ]] || die "host name '$name': a letter, then lower-case letters, digits, dashes"
        host_names | grep -qxF -- "$name" && continue
        address=$LAB_NET.$((11 + $(wc -l <"$RUN/hosts")))
        [ "${address##*.}" -lt 255 ] || die "too many hosts for $LAB_NET.0/24"
        echo "$name $address" >>"$RUN/hosts"
        ssh-keygen -q -t ed25519 -N '' -C "$name" -f "$RUN/hostkeys/$name"
    done
    host_directory
}

host_directory() { # the files by which hosts find and recognise one another
    local name address key
    : >"$RUN/known_hosts"
    : >"$RUN/ssh_config"
    while read -r name address; do
        key=$(cut -d' ' -f1,2 "$RUN/hostkeys/$name.pub")
        echo "$name,$address $key" >>"$RUN/known_hosts"
        cat >>"$RUN/ssh_config" <<CONFIG
Host $name
    HostName $address
    User root
    IdentityFile $RUN/id_ed25519
    IdentitiesOnly yes
    UserKnownHostsFile $RUN/known_hosts
    StrictHostKeyChecking yes
    ConnectTimeout 5
    LogLevel ERROR
CONFIG
    done <"$RUN/hosts"
}

host_introduce() { # tell hosts that were up before about names added since; their own lines stay as they are
    local name newcomer address
    for name in $(host_names); do
        host_running "$name" || continue
        while read -r newcomer address; do
            # shellcheck disable=SC2016 # expanded by the shell on the host
            host_attach "$name" sh -c 'grep -qwF -- "$2" /etc/hosts || echo "$1 $2" >>/etc/hosts' - "$address" "$newcomer" </dev/null
        done <"$RUN/hosts"
    done
    ! host_running "$(controller)" || host_push "$(controller)" "$RUN/known_hosts" /root/.ssh/known_hosts
}

# --- disks and configuration ------------------------------------------------------------------------------------------

host_disk() { # NAME: a fresh disk
    cp --reflink=auto --sparse=auto "$(image_path)" "$(disk_of "$1")"
    on_disk "$(disk_of "$1")" host_personalise "$1"
}

host_personalise() { # ROOT NAME
    local root=$1 name=$2 ssh=$1/root/.ssh
    echo "$name" >"$root/etc/hostname"
    {
        printf '127.0.0.1 localhost\n::1 localhost\n'
        awk '{ print $2, $1 }' "$RUN/hosts"
    } >"$root/etc/hosts"
    machine_resolv_conf >"$root/etc/resolv.conf"
    install -m 600 "$RUN/hostkeys/$name" "$root/etc/ssh/ssh_host_ed25519_key"
    install -m 644 "$RUN/hostkeys/$name.pub" "$root/etc/ssh/ssh_host_ed25519_key.pub"
    install -m 600 "$RUN/id_ed25519.pub" "$ssh/authorized_keys"
    if [ "$name" = "$(controller)" ]; then
        install -m 600 "$RUN/id_ed25519" "$ssh/id_ed25519"
        install -m 644 "$RUN/id_ed25519.pub" "$ssh/id_ed25519.pub"
        install -m 644 "$RUN/known_hosts" "$ssh/known_hosts"
    fi
    if [ "${LAB_LXC_NET:-no}" = yes ]; then # as on a real machine: lxc-net makes lxcbr0, and lxc.service need not wait for it
        mkdir -p "$root/etc/systemd/system/lxc-net.service.d"
        printf '[Unit]\nConditionVirtualization=\n' >"$root/etc/systemd/system/lxc-net.service.d/lab.conf"
    fi
}

host_configure() { # NAME: the LXC side of it
    local name=$1 directory
    directory=$LXC_PATH/$(lxc_name "$name")
    mkdir -p "$directory"
    # cgroup needs :force, or no nested container starts; rootfs is a loop device, so that "no space left" is real
    # and nothing is mounted where the machine can see it; systemd takes SIGRTMIN+3 as "power off", not SIGPWR.
    cat >"$directory/config" <<CONFIG
lxc.include = /usr/share/lxc/config/nesting.conf
lxc.apparmor.profile = unconfined
lxc.uts.name = $name
lxc.rootfs.path = loop:$(disk_of "$name")
lxc.rootfs.options = noatime
lxc.mount.auto = cgroup:rw:force proc:rw sys:rw
lxc.cap.drop =
lxc.autodev = 1
lxc.hook.autodev = $LAB_HOME/device-nodes
lxc.signal.halt = SIGRTMIN+3
lxc.tty.max = 0
lxc.pty.max = 1024
lxc.net.0.type = veth
lxc.net.0.flags = up
lxc.net.0.link = $LAB_BRIDGE
lxc.net.0.veth.pair = $(port_of "$name")
lxc.net.0.name = eth0
lxc.net.0.hwaddr = $(printf '02:1a:b0:00:00:%02x' "$(host_number "$name")")
lxc.net.0.ipv4.address = $(host_address "$name")/24
lxc.net.0.ipv4.gateway = $LAB_NET.1
CONFIG
}

# --- lives ------------------------------------------------------------------------------------------------------------

hosts_up() {
    local name began=$SECONDS jobs=() job failed=0
    [ $# -gt 0 ] || set -- ctl cn1 cn2
    image_build
    host_enrol "$@"
    network_up
    for name in "$@"; do
        (
            if [ ! -f "$(disk_of "$name")" ]; then
                host_configure "$name"
                host_disk "$name"
            fi
            host_start "$name"
        ) &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || failed=1; done
    [ $failed = 0 ] || die "up: not every host came up"
    host_introduce
    say "up: $* in $((SECONDS - began)) s; ssh -F $RUN/ssh_config $1"
}

host_start() { # NAME: boot it, wait until it has booted (seen from inside, for its network may be cut)
    local name=$1 attempt
    host_running "$name" && return
    disk_release "$name" || die "$name: its disk is still in use" # a second loop device over a live disk would ruin it
    for attempt in 1 2 3 4 5; do # liblxc gives up when another user of loop devices takes the one it chose
        rm -f "$RUN/$name.log"
        flock -o "$MACHINE_LOCK" lxc-start -P "$LXC_PATH" -n "$(lxc_name "$name")" -d -o "$RUN/$name.log" -l INFO 9>&- 2>/dev/null && break
        [ "$attempt" -lt 5 ] || { grep ERROR "$RUN/$name.log" >&2; die "$name does not start"; }
        sleep 0.3
    done
    host_booted "$name" || die "$name: not booted after 60 s"
    fault_reapply "$name"
}

# Booted: sshd answers and no job is running but lxc.service, which waits 30 s for a bridge that lxc-net does not make in a
# container (README.md); a test that needs containers started at boot waits for that itself.
host_booted() {
    local deadline=$((SECONDS + 60))
    while [ $SECONDS -lt $deadline ]; do
        # shellcheck disable=SC2016 # expanded by the shell on the host
        host_attach "$1" sh -c 'systemctl is-active --quiet ssh &&
            [ -z "$(systemctl list-jobs --no-legend | awk "\$NF == \"running\" && \$2 != \"lxc.service\"")" ]' </dev/null >/dev/null 2>&1 && return
        sleep 0.1
    done
    return 1
}

host_stop() { # NAME: in good order; by force when it does not obey
    local name=$1
    host_thaw "$name"
    if host_running "$name"; then
        timeout 40 lxc-stop -P "$LXC_PATH" -n "$(lxc_name "$name")" --nokill -t 30 2>/dev/null || say "$name: would not shut down"
    fi
    host_kill "$name"
}

host_kill() { # NAME: SIGKILL for everything in it
    local name=$1 pid
    host_thaw "$name"
    timeout 20 lxc-stop -P "$LXC_PATH" -n "$(lxc_name "$name")" --kill 2>/dev/null || true
    if host_running "$name"; then
        pid=$(host_pid "$name") && kill -9 "$pid"
    fi
    disk_release "$name" || die "$name: its disk is still in use"
}

# With the older freezer not even SIGKILL ends what is frozen, nor the host around a frozen container. A machine may have only the
# newer one, a host may not run, and a container may end meanwhile: then there is nothing to thaw, and `disk_release` judges.
host_thaw() { # NAME
    local payload state
    payload=/sys/fs/cgroup/freezer/lxc.payload.$(lxc_name "$1")
    timeout 5 lxc-unfreeze -P "$LXC_PATH" -n "$(lxc_name "$1")" 2>/dev/null || true
    while read -r state; do echo THAWED >"$state"; done < <(find "$payload" -name freezer.state 2>/dev/null) 2>/dev/null || true
}

host_reset() {
    host_kill "$1"
    rm -f "$(disk_of "$1")"
    host_disk "$1"
    host_start "$1"
}

loops_over() { losetup --list --noheadings --raw -O NAME --associated "$1" 2>/dev/null; }

# Loop devices that a killed host had attached to files on its own disk outlive it and keep that disk busy: detach them,
# and wait until the disk's own device is gone, which is when all that the host had written is on the machine's.
disk_release() {
    local disk deadline=$((SECONDS + 120)) device number inner
    disk=$(disk_of "$1")
    while [ $SECONDS -lt $deadline ]; do
        [ -n "$(loops_over "$disk")" ] || return 0
        for device in $(loops_over "$disk"); do
            number=$(cat "/sys/block/${device##*/}/dev" 2>/dev/null) || continue
            for inner in $(losetup --list --noheadings --raw -O NAME,BACK-MAJ:MIN | awk -v number="$number" '$2 == number { print $1 }'); do
                losetup --detach "$inner" 2>/dev/null || true
            done
        done
        sleep 0.1
    done
    return 1
}

# --- ways in ----------------------------------------------------------------------------------------------------------

host_exec() {
    local name=$1
    shift
    host_known "$name"
    exec ssh -F "$RUN/ssh_config" "$name" "$@"
}

host_attach() {
    local name=$1
    shift
    host_known "$name"
    ${ATTACH_REPLACES:-} lxc-attach -P "$LXC_PATH" -n "$(lxc_name "$name")" --clear-env -v PATH=$HOST_PATH -v HOME=/root -v LANG=C.UTF-8 -- "$@"
}

# Both ways a tar stream through attach, so that owners, modes, links and holes survive and no network is needed. The
# last component is renamed on arrival: DST is what SRC will be called, and is replaced when it is a file.
host_push() {
    local name=$1 source=$2 target=$3
    [[ $target == /* ]] || die "push: the place on the host must be an absolute path"
    [ -e "$source" ] || [ -L "$source" ] || die "push: there is no $source here"
    tar_out "$source" | host_attach "$name" sh -c "$TAR_IN" - "$target" "$(basename "$(realpath -s "$source")")"
}

host_pull() {
    local name=$1 source=$2 target=$3
    [[ $source == /* ]] || die "pull: the place on the host must be an absolute path"
    # shellcheck disable=SC2016 # expanded by the shell on the host
    host_attach "$name" sh -c 'tar -C "$(dirname "$1")" --sparse --xattrs --acls --numeric-owner -cf - "$(basename "$1")"' - "$source" </dev/null |
        sh -c "$TAR_IN" - "$(realpath -ms "$target")" "$(basename "$source")"
}

tar_out() {
    local source
    source=$(realpath -s "$1")
    tar -C "${source%/*}/" --sparse --xattrs --acls --numeric-owner -cf - "${source##*/}"
}

# shellcheck disable=SC2016 # a script for the receiving side: TARGET NAME-IN-THE-ARCHIVE
TAR_IN='set -eu
mkdir -p "$(dirname "$1")"
work=$(mktemp -d "$(dirname "$1")/.lab-copy-XXXXXX")
trap "rm -rf \"$work\"" EXIT
tar -C "$work" --sparse --xattrs --acls --numeric-owner -xpf -
[ -e "$work/$2" ] || [ -L "$work/$2" ] || exit 1
if [ -d "$work/$2" ] && [ ! -L "$work/$2" ] && [ -d "$1" ]; then cp -a "$work/$2/." "$1/"; else mv -fT "$work/$2" "$1"; fi'

host_fill() { # NAME LEAVE_KIB
    [[ $2 =~ ^[0-9]+$ ]] || die "fill: how many KiB shall stay free?"
    # Allocating takes a little for itself, so a second, smaller ballast is trimmed until what is left fits.
    # shellcheck disable=SC2016 # expanded by the shell on the host
    host_attach "$1" sh -c 'set -eu
free() { df --output=avail -k / | tail -n 1 | tr -d " "; }
rm -f "$1"; : >"$1"; sync -f /; size=0
for try in 1 2 3 4 5 6; do
    size=$((size + $(free) - $2))
    [ "$size" -gt 0 ] || break
    if [ "$size" -lt "$(($(stat -c %s "$1") / 1024))" ]; then truncate -s "${size}K" "$1"; else fallocate -l "${size}K" "$1" 2>/dev/null || :; fi
    [ "$(free)" != "$2" ] || break
done
echo "$(free) KiB free"' - "$BALLAST" "$2" </dev/null
}

# --- the whole lab ----------------------------------------------------------------------------------------------------

lab_status() {
    local name address
    [ -f "$RUN/hosts" ] || die "no lab here: run 'lab up' first"
    while read -r name address; do
        printf '%-16s %-15s %s\n' "$name" "$address" "$(host_state "$name")"
    done <"$RUN/hosts"
    [ ! -s "$RUN/faults" ] || sed 's/^/fault: /' "$RUN/faults"
}

lab_down() {
    local name names deadline left
    names=$(host_names) # the roster goes with the rest, but is needed to tell what is ours
    for name in $names; do host_kill "$name" & done
    wait
    network_down
    deadline=$((SECONDS + 60))
    while [ -n "$(leftovers "$names")" ] && [ $SECONDS -lt $deadline ]; do
        [ -n "$(monitors)" ] || cgroups_remove "$names"
        sleep 0.1
    done
    rm -rf "$RUN" "/run/lxc/lock$LXC_PATH"
    rmdir -p --ignore-fail-on-non-empty "/run/lxc/lock${LXC_PATH%/*}" 2>/dev/null || true
    left=$(leftovers "$names")
    [ -z "$left" ] || { printf '%s\n' "$left" >&2; die "down: the above is left"; }
    say "down: nothing is left"
}

monitors() { pgrep -af -- "^\\[lxc monitor\\] $LXC_PATH " || true; }

cgroups() { # NAMES
    local name
    for name in $1; do
        find /sys/fs/cgroup -maxdepth 4 -type d \( -name "lxc.payload.$LAB_BRIDGE-$name" -o -name "lxc.monitor.$LAB_BRIDGE-$name" \) 2>/dev/null || true
    done
}

# A monitor that was ended while it cleaned up leaves its cgroups. Those that hold nothing go; what can't go is told as left over.
cgroups_remove() { # NAMES
    local top
    while read -r top; do find "$top" -depth -type d -exec rmdir {} \; 2>/dev/null || true; done < <(cgroups "$1")
}

# A line for each thing of this lab that is still on the machine. Other labs and programs may use similar names: a thing is
# ours by the path it uses, by the mark on the bridge, or by the names of our own hosts.
leftovers() { # NAMES
    local table
    grep -F " $RUN/" /proc/self/mounts | sed 's/^/mount: /' || true
    losetup --list --noheadings --raw -O NAME,BACK-FILE | grep -F " $RUN/" | sed 's/^/loop device: /' || true
    monitors | sed 's/^/process: /'
    cgroups "$1" | sed 's/^/cgroup: /'
    if [ ! -e "/sys/class/net/$LAB_BRIDGE" ] || bridge_is_ours; then
        ip -o link | awk -F': ' -v bridge="$LAB_BRIDGE" '{ sub(/@.*/, "", $2) } $2 == bridge || $2 ~ "^" bridge "-p[0-9]+$" { print "link: " $2 }'
        for table in "bridge $FAULT_TABLE" "ip $NAT_TABLE"; do
            nft list tables | grep -xF "table $table" | sed 's/^/nft: /' || true
        done
    fi
}
