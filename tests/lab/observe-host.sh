# shellcheck shell=sh
# Runs on a lab host under `sh -s` and describes on stdout what is really there. Uses nothing of tallybook's, needs only what
# plain Debian has plus what is there to be described, and leaves nothing behind.
#
# Output: a line "@SECTION" opens a section; each of its lines is indented by one space (the observer splits on that).
# Inside a section lines are sorted, except where order has a meaning (the rules of one nft table, the text of one file).
set -u
export LC_ALL=C
TAB=$(printf '\t')

section() { # NAME COMMAND...
    echo "@$1"
    shift
    "$@" 2>/dev/null | sed 's/^/ /'
}

have() { command -v "$1" >/dev/null 2>&1; }

containers() { ! have lxc-ls || lxc-ls -1 | sort; }

container_states() {
    have lxc-info || return 0
    lxc-ls -1 | sort | while read -r name; do
        echo "$name $(lxc-info -n "$name" -sH)"
    done
}

# One line for each file: path TAB type mode owner:group links=N [size=N sha256=… | target=…] [first=PATH] [sparse].
# first= names the path that sorts first among the hardlinks to the same inode; links= counts all of them, so that
# a link from outside the tree shows as well.
manifest() { # DIRECTORY...
    for directory in "$@"; do
        [ -d "$directory" ] || continue
        { find "$directory" -xdev -type f -print0 | xargs -0r sha256sum -z | sed -z 's/^\\//' | tr '\n\0' '?\n' | sed 's/^/H /'
          find "$directory" -xdev -printf 'F %i\t%y\t%m\t%U:%G\t%n\t%s\t%S\t%l\t%p\0' | tr '\n\0' '?\n' |
              LC_ALL=C sort -t "$TAB" -k 9
        } | awk -F '\t' '
            /^H / { hash[substr($0, 69)] = substr($0, 3, 64); next }
            {
                inode = substr($1, 3); type = $2; path = $9
                line = path "\t" type " " $3 " " $4
                if (type == "d") { print line; next }
                line = line " links=" $5
                if (type == "f") {
                    line = line " size=" $6 " sha256=" hash[path]
                    if ($5 > 1) {
                        if (!(inode in first)) first[inode] = path
                        line = line " first=" first[inode]
                    }
                    if ($6 > 65536 && $7 < 0.8) line = line " sparse"
                }
                if (type == "l") line = line " target=" $8
                print line
            }'
        find "$directory" -xdev \( -type b -o -type c \) -exec stat -c "%n${TAB}device 0x%t:0x%T" {} +
        attributes "$directory"
    done | sort
}

attributes() { # DIRECTORY: extended attributes, ACLs and capabilities
    if have getfattr; then
        getfattr -R -P -h -d -m - -e hex --absolute-names "$1" |
            awk '/^# file: / { path = substr($0, 9); next } NF { print path "\txattr " $0 }'
    elif have getcap; then
        getcap -r "$1" | awk '{ path = $1; $1 = ""; print path "\tcapabilities" $0 }'
    fi
}

roots() { # what holds the root of a container or a template, wherever it is kept
    [ ! -d /var/lib/tallybook ] || find /var/lib/tallybook -xdev -type d -name rootfs -prune -print
    [ ! -d /var/lib/lxc ] || find /var/lib/lxc -xdev -type d -name rootfs -prune -print
}

all_manifests() {
    manifest /var/lib/lxc
    roots | grep '^/var/lib/tallybook/' | while read -r root; do manifest "$root"; done
}

# The text of files that are small and text; of others the hash. Line by line, so that a difference can be read.
texts() { # FIND-ARGUMENTS
    find "$@" \( -type f -o -type l \) -print0 | sort -z | tr '\n\0' '?\n' | while read -r path; do
        text "$path"
    done
}

text() { # PATH
    if [ -L "$1" ]; then
        echo "$1: symlink to $(readlink "$1")"
        return
    fi
    [ -f "$1" ] || return 0
    echo "$1: $(stat -c 'mode %a owner %u:%g' "$1")"
    if [ "$(stat -c %s "$1")" -le 65536 ] && ! grep -qP '\x00' "$1"; then
        awk -v path="$1" '{ print path ": | " $0 }' "$1"
    else
        echo "$1: sha256 $(sha256sum <"$1" | cut -c1-64)"
    fi
}

# LXC's own log lies there too; that it is there, whose and how, is in the manifest.
configurations() { [ ! -d /var/lib/lxc ] || texts /var/lib/lxc -xdev -name rootfs -prune -o ! -name lxc.log; }

managed_files() {
    for directory in /etc/tallybook /etc/dnsmasq.d /etc/systemd/system /etc/lxc /etc/nftables.d /etc/sysctl.d /etc/network /etc/cron.d; do
        [ ! -d "$directory" ] || texts "$directory"
    done
    for path in /etc/nftables.conf /etc/dnsmasq.conf /etc/hosts /etc/hostname /etc/resolv.conf /etc/subuid /etc/subgid /root/.ssh/authorized_keys; do
        text "$path"
    done
}

identities() { # what tells one container from another, as text
    roots | sort | while read -r root; do
        for path in etc/hostname etc/hosts etc/machine-id etc/network/interfaces etc/resolv.conf; do text "$root/$path"; done
    done
}

firewall() { # stateless, without handles; tables in order of name, rules in their own
    have nft || return 0
    nft list tables | sort | while read -r _ family table; do
        nft --stateless list table "$family" "$table"
    done
}

# Where dnsmasq reads is asked of the running ones, so that no layout is taken for granted.
dnsmasq_sources() {
    for process in /proc/[0-9]*; do
        [ "$(cat "$process/comm")" = dnsmasq ] || continue
        tr '\0' '\n' <"$process/cmdline" | sed -n 's/^--\(conf-file\|conf-dir\|dhcp-hostsfile\|dhcp-hostsdir\|addn-hosts\|hostsdir\|dhcp-optsfile\)=\([^,]*\).*/\2/p;s/^-[C7]\(.*\)/\1/p'
    done | sort -u
}

reservations() {
    { dnsmasq_sources; echo /etc/dnsmasq.conf; echo /etc/dnsmasq.d; echo /etc/tallybook; } | while read -r source; do
        [ ! -e "$source" ] || find "$source" -type f
    done | sort -u | while read -r file; do
        text "$file" | awk -F ': [|] ' 'NF > 1 && $2 !~ /^[ \t]*(#|$)/'
    done | sort
    for process in /proc/[0-9]*; do
        [ "$(cat "$process/comm")" = dnsmasq ] || continue
        tr '\0' '\n' <"$process/cmdline" | sed -n 's/^--\(dhcp-host=.*\)/argument: \1/p'
    done | sort
}

# Whatever a DNS server of the host was given to answer from, and whether it was told of it.
dns_files() {
    [ ! -d /etc/bind/tallybook ] || texts /etc/bind/tallybook
    [ ! -e /etc/bind/tallybook/live ] || echo "live is $(readlink -f /etc/bind/tallybook/live | cmp - /etc/bind/tallybook/told >/dev/null && echo told)"
}

leases() { # name, address and MAC; the time a lease ends and the client's id say nothing of the host's state
    { find /var/lib -xdev -path '/var/lib/*/rootfs' -prune -o -name '*.leases' -type f -print; find /run -xdev -name '*.leases' -type f -print; } | sort | while read -r file; do
        awk -v file="$file" 'NF >= 4 && $1 != "duid" { print file ": " $4 " " $3 " " $2 }' "$file"
    done | sort
}

# The kernel says of a bridge whether it carries some time after it gained its first port or lost its last one: a second on
# an idle machine, more where many networks come and go. An observation waits for that, and tells what is so after ten seconds.
settle_bridges() {
    tries=0
    for bridge in /sys/class/net/*/bridge; do
        link=${bridge%/bridge}
        while carrier_lags "$link" && [ $tries -lt 100 ]; do
            sleep 0.1
            tries=$((tries + 1))
        done
    done
}

carrier_lags() { # LINK
    [ -d "$1/bridge" ] || return 1
    # 3 is a port that forwards; the lowest bit of the flags, that somebody wants the link up.
    if [ $(($(cat "$1/flags") & 1)) = 1 ] && grep -sqx 3 "$1"/brif/*/state; then
        [ "$(cat "$1/operstate")" = down ]
    else
        [ "$(cat "$1/operstate")" = up ]
    fi
}

network() {
    settle_bridges
    for link in /sys/class/net/*; do
        name=${link##*/}
        kind=plain
        [ ! -d "$link/bridge" ] || kind=bridge
        master=-
        [ ! -e "$link/master" ] || master=$(basename "$(readlink "$link/master")")
        echo "link $name $kind master=$master state=$(cat "$link/operstate") mtu=$(cat "$link/mtu")"
    done | sort
    ip -o -4 address | awk '{ print "address " $2 " " $4 }' | sort
    ip -o -6 address show scope global | awk '{ print "address " $2 " " $4 }' | sort
    ip -4 route | sed 's/^/route /;s/ *$//' | sort
    ip -4 rule | sed 's/^/rule /' | sort
    for setting in net/ipv4/ip_forward net/ipv6/conf/all/forwarding; do
        echo "sysctl $setting $(cat "/proc/sys/$setting")"
    done
}

mounts() { # without the base set: what systemd and LXC mount on every host, each named here
    awk '{
        for (i = 7; $i != "-"; i++);
        if ($5 ~ "^(/|/proc(/sys/kernel/random/boot_id|/sys/fs/binfmt_misc)?|/sys(/fs/cgroup(/[a-z_,]+)?|/kernel/[a-z]+|/fs/[a-z]+(/connections)?)?)$") next
        if ($5 ~ "^/dev(/[.]lxc/(proc|sys)|/pts|/ptmx|/console|/shm|/mqueue|/hugepages)?$") next
        if ($5 ~ "^/run(/lock|/user/[0-9]+|/credentials/systemd-[a-z-]+[.]service)?$") next
        print $5 " root=" $4 " type=" $(i + 1) " from=" $(i + 2)
    }' /proc/self/mountinfo | sort
}

# Every process of the host itself; a container's own live in another pid namespace and are told by its state. The
# observer's own processes are those below this shell.
processes() {
    own=$(readlink "/proc/$$/ns/pid")
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        [ "$(readlink "$process/ns/pid")" = "$own" ] || continue
        below_us "$pid" && continue
        arguments=$(tr '\0\n' '  ' <"$process/cmdline" | sed 's/ *$//')
        [ -n "$arguments" ] || arguments="[$(cat "$process/comm")]"
        [ "$arguments" != "[]" ] || continue # gone meanwhile
        line="$arguments"
        for aspect in cwd root; do
            place=$(readlink "$process/$aspect")
            [ "$place" = / ] || line="$line ($aspect $place)"
        done
        line="$line ($(readlink "$process/exe"))"
        printf '%s\n' "$line"
    done | sort
}

below_us() { # PID
    ancestor=$1
    while [ "${ancestor:-0}" -gt 1 ]; do
        [ "$ancestor" != $$ ] || return 0
        ancestor=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$ancestor/status")
    done
    return 1
}

units() {
    systemctl list-units --all --plain --no-legend --no-pager --type=service,timer,socket,path,mount,target |
        awk '$2 != "not-found" && $3 != "inactive" { print $1 " " $3 " " $4 }' | sort
    systemctl list-unit-files --plain --no-legend --no-pager --state=enabled | awk '{ print "enabled " $1 }' | sort
    # Somebody's login that just ended is none of its doing.
    systemctl list-jobs --plain --no-legend --no-pager |
        awk 'NF > 3 && $2 !~ "^(user|user-runtime-dir|session)[-@]" { print "job " $2 " " $3 }' | sort
}

packages() { dpkg-query -W -f '${Package} ${Version} ${db:Status-Abbrev}\n' | sort; }

product_files() { # names and sizes below the product's own directory, without the roots described above
    [ ! -d /var/lib/tallybook ] || find /var/lib/tallybook -xdev -name rootfs -prune -o -printf '%p\t%y %m %U:%G size=%s\n' |
        sed -E 's/(\td [^=]*) size=.*/\1/' | sort
}

leftovers() { # places for passing things, and names that betray them anywhere on the disk
    find /tmp /var/tmp /dev/shm /run /home /srv /opt /mnt /media /usr/local /root -mindepth 1 \
        \( -path /run/systemd -o -path /run/udev -o -path /run/user -o -path /run/log -o -path /run/credentials \) -prune -o \
        -printf '%p\t%y %m %U:%G size=%s\n'
    find / -xdev \( -path /var/lib/lxc/\*/rootfs -o -path /var/cache/apt -o -path /usr/share -o -path /usr/lib -o -path /usr/include \) -prune -o \
        \( -name '*tallybook*' -o -name '*staging*' -o -name '*.partial' -o -name '*.part' -o -name '*.tmp' -o -name '*.new' -o -name '*~' -o -name '*.dpkg-*' \) \
        -printf '%p\t%y %m %U:%G size=%s\n'
}

sorted_leftovers() { leftovers | sed -E 's/(\td [^=]*) size=.*/\1/' | sort -u; }

timeout 45 systemctl is-system-running --wait >/dev/null 2>&1 || : # a boot under way is not a state to compare

section containers containers
section container-states container_states
section container-configs configurations
section identities identities
section files managed_files
section etc manifest /etc
section nft firewall
section reservations reservations
section leases leases
section dns dns_files
section network network
section mounts mounts
section processes processes
section units units
section packages packages
section manifest all_manifests
section product-files product_files
section leftovers sorted_leftovers
echo "@end"
