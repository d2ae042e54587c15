#!/bin/bash
# demo.sh
#
# The whole work of a cloud on three real hosts: installs what is missing, builds, raises a lab, and goes down the page that
# playbooks do it by, command by command: check and refresh, install and prepare hosts, make a container from scratch, edit it,
# snapshot it to a template, send that over a line that is cut on the way, make containers from it, take one back. What each
# command prints is shown as it is, and what it claims is looked up on the hosts without it; the first thing that is not as it
# must be ends this with a message. The lab is removed at every exit; the log's store is kept, and the last line says where.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$(readlink -f "$0")")/.."
. scripts/packages.sh
[ $# = 0 ] || { sed -n '2,/^set /{/^#/!d;s/^# \{0,1\}//;p}' scripts/demo.sh >&2; exit 2; }

export LAB_DIR=${LAB_DIR:-/var/tmp/tallybook-demo} LAB_BRIDGE=${LAB_BRIDGE:-labd} LAB_NET=${LAB_NET:-10.98.0}
LAB_HOME=$PWD/tests/lab
STORE=${DEMO_STORE:-$PWD/target/demo-store}
WORK=$(mktemp -d)
lab_raised=no

finish() {
    local status=$?
    trap - EXIT
    if [ $status != 0 ]; then echo "demo: ended with status $status" >&2; fi
    [ $lab_raised = no ] || "$LAB_HOME/lab" down || status=1
    rm -rf "$WORK"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

title() { printf '\n# %s\n' "$*"; }
wrong() { printf 'demo: NOT AS IT MUST BE: %s\n' "$*" >&2; exit 1; }

# tb ARGUMENT...: tallybook on the controller, shown; what it printed is in $WORK/said. Must succeed.
tb() {
    shown tallybook "$@"
    ctl tallybook "$@" 2>&1 | tee "$WORK/said" || wrong "tallybook $* failed"
}

# look HOST COMMAND...: a look that needs nothing of tallybook, shown.
look() {
    local host=$1
    shift
    printf '[%s] ' "$host"
    shown "$@"
    on "$host" "$@"
}

shown() {
    local word line=
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=@%,+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
        line+=" $word"
    done
    printf '$%s\n' "$line"
}

said_operation() { sed -n 's/.*(operation \([0-9a-f]*\)).*/\1/p' "$WORK/said" | tail -n 1; }
figure() { sed -n "s/^ *\"$1\": \([0-9]*\),\{0,1\}$/\1/p" "$WORK/figures" | head -n 1; } # of $WORK/figures
arrived() { on "$1" cat /sys/class/net/eth0/statistics/rx_bytes; }
mebibytes() { echo "$(($1 / 1048576)) MiB"; }

raise() {
    title "Three hosts: plain Debian, nothing of tallybook on them"
    need_packages "the lab" openssh-client util-linux procps
    "$LAB_HOME/lab" deps
    mkdir -p "$LAB_DIR"
    exec 7>"$LAB_DIR/.demo.lock"
    flock -n 7 || wrong "another demo uses the lab in $LAB_DIR; wait for it"
    scripts/build.sh | tee "$WORK/built"
    TALLYBOOK_BIN=$(tail -n 1 "$WORK/built")
    # shellcheck source=tests/lab/operator.sh
    . "$LAB_HOME/operator.sh"
    lab_raised=yes
    "$LAB_HOME/lab" down 7>&- # of one that was killed
    "$LAB_HOME/lab" up ctl cn1 cn2 7>&-
    install_tallybook
    write_inventory
    look ctl cat /root/cloud.toml
}

hosts_ready() {
    title "The inventory: checked, then compiled; without and with a limit"
    tb cloud check
    tb cloud refresh
    tb cloud refresh --limit cn1,d1.foo.net
    title "Hosts: install, then prepare (packages, bridge, DHCP, NAT and forwards); the controller is a compute node too"
    tb host install ctl cn1 cn2
    tb host prepare ctl cn1 cn2
    tb host prepare ctl cn1 cn2
    tb host list
    [ "$(grep -c prepared "$WORK/said")" = 3 ] || wrong "not every host is prepared"
}

template_made() {
    title "A container from scratch, to be the template's base; edited until satisfied"
    tb container create lxcmakinastates --on ctl
    tb container exec lxcmakinastates -- sh -c 'apt-get update -q && apt-get install -y -q --no-install-recommends less'
    tb container exec lxcmakinastates -- sh -c 'echo "from the template makinastates" >/etc/made-from'
    title "Snapshot it to a template: copied, scrubbed, scanned for leaks, published"
    tb template snapshot makinastates --from lxcmakinastates
    tb template list
}

template_sent() {
    local before first operation status=0 done=0 resumed received wire second sender deadline
    title "Send the template to cn2, and cut the line when 40 MiB have arrived (slowed to 80 Mbit/s, or it would be over at once)"
    "$LAB_HOME/lab" slow cn2 80mbit 7>&-
    before=$(arrived cn2)
    shown tallybook template sync makinastates --from ctl --to cn2
    ctl tallybook template sync makinastates --from ctl --to cn2 >"$WORK/said" 2>&1 7>&- &
    sender=$!
    deadline=$((SECONDS + 120))
    until [ "${done%.*}" -ge 40 ]; do
        kill -0 $sender 2>/dev/null || { cat "$WORK/said"; wrong "it ended before the line could be cut"; }
        [ $SECONDS -lt $deadline ] || { cat "$WORK/said"; wrong "40 MiB did not arrive in 120 s"; }
        sleep 0.1
        done=$(sed -n 's/.*receiving \([0-9.]*\) MiB of .*/\1/p' "$WORK/said" | tail -n 1)
        done=${done:-0}
    done
    "$LAB_HOME/lab" cut cn2 7>&-
    wait $sender || status=$?
    cat "$WORK/said"
    echo "exit status $status"
    [ $status = 75 ] || wrong "a cut line must end with 75, interrupted"
    operation=$(said_operation)
    first=$(($(arrived cn2) - before))
    tb op list --unfinished
    grep -q "$operation" "$WORK/said" || wrong "the operation is not listed as unfinished"
    on cn2 sh -c '! ls /var/lib/tallybook/templates/makinastates 2>/dev/null | grep .' || wrong "half a template can be seen on cn2"

    title "The line is back: go on where it stopped"
    "$LAB_HOME/lab" heal cn2 7>&-
    before=$(arrived cn2)
    tb op resume "$operation"
    second=$(($(arrived cn2) - before))
    ctl tallybook --format json op show "$operation" >"$WORK/figures"
    resumed=$(figure resumed_bytes) received=$(figure received_bytes) wire=$(figure wire_bytes)
    echo "the step's own figures: $(mebibytes "$resumed") were there already, $(mebibytes "$received") were still missing ($(mebibytes "$wire") compressed)"
    echo "cn2's interface: $(mebibytes "$first") arrived before the cut, $(mebibytes "$second") after it"
    [ "$resumed" -ge $((30 * 1048576)) ] || wrong "what had arrived was not used"
    [ "$second" -lt $((wire + wire / 4 + 4 * 1048576)) ] || wrong "more arrived than was missing"
    title "And to cn1, over a sound line"
    tb template sync makinastates --to cn1
    tb template list
    grep -q 'cn1 cn2 ctl' "$WORK/said" || wrong "the template is not on all three hosts"
}

# nothing_of NAME MAC ADDRESS HOST: fails when the host has anything of a container but the agent's own records of what it did.
nothing_of() {
    local name=$1 mac=$2 address=$3 host=$4
    echo "[$host] looking for $name, $mac, $address: containers, rules, files, mounts, cgroups"
    # shellcheck disable=SC2016 # expanded on the host
    on "$host" sh -c '
        export name="$1" mac="$2" address="$3"; left=0
        found() { echo "LEFT: $*"; left=1; }
        [ ! -e "/var/lib/lxc/$name" ] || found "/var/lib/lxc/$name"
        lxc-ls -1 | grep -qx "$name" && found "a container for LXC"
        nft list ruleset | grep -wF -e "$address" && found "the above rule"
        grep -rlF -e "$mac" -e "$address" /etc /var/lib/lxc /var/lib/tallybook /run 2>/dev/null | grep -v /receipts && found "the above file"
        find / -xdev -path /proc -prune -o -path "*/receipts/*" -prune -o -name "*$name*" -print 2>/dev/null | grep . && found "the above name"
        grep -F -e "/$name/" /proc/mounts && found "the above mount"
        find /sys/fs/cgroup -name "*$name*" 2>/dev/null | grep . && found "the above cgroup"
        [ $left = 0 ] && echo "nothing of $name is left"' - "$name" "$mac" "$address" || wrong "something of $name is left on $host"
}

taken_back() {
    local operation mac address
    title "A container from scratch on cn2, and destroyed again"
    tb container create scratch --on cn2
    mac=$(on cn2 sed -n 's/^lxc.net.0.hwaddr *= *//p' /var/lib/lxc/scratch/config)
    address=$(on cn2 lxc-info -n scratch -iH | head -n 1)
    if [ -z "$mac" ] || [ -z "$address" ]; then wrong "scratch is not running on cn2"; fi
    tb container destroy scratch
    nothing_of scratch "$mac" "$address" cn2

    title "Made again, and its creation taken back: nothing of it stays"
    "$LAB_HOME/observer" observe "$WORK/before" cn2 7>&-
    tb container create scratch --on cn2
    operation=$(said_operation)
    mac=$(on cn2 sed -n 's/^lxc.net.0.hwaddr *= *//p' /var/lib/lxc/scratch/config)
    address=$(on cn2 lxc-info -n scratch -iH | head -n 1)
    if [ -z "$mac" ] || [ -z "$address" ]; then wrong "scratch is not running on cn2"; fi
    tb container show scratch
    tb op rollback "$operation"
    nothing_of scratch "$mac" "$address" cn2
    "$LAB_HOME/observer" observe "$WORK/after" cn2 7>&-
    "$LAB_HOME/observer" compare "$WORK/before" "$WORK/after" || wrong "cn2 is not as it was before"
    echo "the observer, which knows nothing of tallybook, finds cn2 as it was before"
}

# identity NAME HOST: what makes it itself, from outside, as "machine-id host-key mac address name".
identity() {
    # shellcheck disable=SC2016 # expanded on the host
    on "$2" lxc-attach -n "$1" -- sh -c 'echo $(cat /etc/machine-id) $(cut -d" " -f2 /etc/ssh/ssh_host_ed25519_key.pub) $(cat /sys/class/net/eth0/address) $(ip -4 -o address show dev eth0 | sed "s/.*inet \([0-9.]*\).*/\1/") $(hostname)'
}

containers_from_template() {
    local container host machine key mac address name port
    title "One container on each compute node, from the one template"
    tb container create d1.foo.net --on cn1 --from makinastates
    tb container create d2.foo.net --on cn2 --from makinastates
    tb container list
    : >"$WORK/identities"
    for container in lxcmakinastates:ctl d1.foo.net:cn1 d2.foo.net:cn2; do
        identity "${container%:*}" "${container#*:}" >>"$WORK/identities"
    done
    title "Each is itself: machine id, SSH host key, MAC, address, name"
    cat "$WORK/identities"
    awk '{ for (i = 1; i <= 5; i++) if ($i == "" || seen[i, $i]++) exit 1 } END { if (NR != 3) exit 1 }' "$WORK/identities" || wrong "two of them share something, or lack it"
    for container in d1.foo.net:cn1 d2.foo.net:cn2; do
        host=${container#*:} container=${container%:*}
        read -r machine key mac address name < <(grep " $container\$" "$WORK/identities" || grep " ${container%%.*}\$" "$WORK/identities")
        [ -n "$machine$mac$name" ] || wrong "$container does not know its name"
        look "$host" ping -c 1 -W 5 "$address"
        port=$(on ctl env TALLYBOOK_INVENTORY=/root/cloud.toml tallybook cloud show | sed -n "s/^$host\/$container .*ssh \([0-9]*\)→22.*/\1/p")
        [ -n "$port" ] || wrong "no port leads to $container"
        # The key the container was seen to have from outside is the only one that is let through.
        # shellcheck disable=SC2016 # expanded on the host
        on ctl sh -c 'printf "%s ssh-ed25519 %s\n%s ssh-ed25519 %s\n" "$1" "$4" "[$2]:$3" "$4" >>/root/containers; cat /root/.ssh/known_hosts >>/root/containers' - "$address" "$host" "$port" "$key"
        look ctl ssh -o UserKnownHostsFile=/root/containers -o StrictHostKeyChecking=yes -p "$port" "root@$host" "hostname; cat /etc/made-from; command -v less"
        look ctl ssh -o UserKnownHostsFile=/root/containers -o StrictHostKeyChecking=yes -J "root@$host" "root@$address" "hostname; cat /etc/machine-id" | tee "$WORK/said"
        grep -qx "$machine" "$WORK/said" || wrong "another machine answered for $container"
    done
}

told() {
    title "The log of all that"
    tb log
    tb op list
    tb verify
    grep -q '^verify: ok' "$WORK/said" || wrong "the log does not verify"
    title "The same from a copy of the store, on this machine"
    rm -rf "$STORE"
    mkdir -p "$(dirname "$STORE")"
    "$LAB_HOME/lab" pull ctl /var/lib/tallybook/store "$STORE" 7>&-
    shown tallybook --store "$STORE" verify
    "$TALLYBOOK_BIN/tallybook" --store "$STORE" verify | tee "$WORK/said"
    grep -q '^verify: ok' "$WORK/said" || wrong "the copy of the log does not verify"
}

raise
hosts_ready
template_made
template_sent
taken_back
containers_from_template
told
title "Done in $((SECONDS / 60)) min $((SECONDS % 60)) s; the lab is removed"
lab_raised=no
"$LAB_HOME/lab" down 7>&-
echo "store: $STORE"
