# shellcheck shell=bash
# The lab's network: one bridge, the way out for apt, and the faults laid on it.
#
# Faults are lines in $RUN/faults ("cut cn1", "pair cn1 cn2", "loss cn1 30", "unplugged cn1", "slow cn1 1mbit"). The first
# three are rules of one nft table, always rendered whole from that file and put in place in one transaction; the other
# two are settings of the host's cable and are laid on again whenever the host boots.

FAULT_TABLE=tallybook_${LAB_BRIDGE}_faults
NAT_TABLE=tallybook_${LAB_BRIDGE}_nat
FORWARD_RECORD=/run/tallybook-lab-ip_forward # what the machine's setting was before the first lab
NETWORK_LOCK=/run/lock/tallybook-lab-network.lock # every lab on this machine changes what they share under it

BRIDGE_OWNER="lab in $LAB_DIR" # written on the bridge: another program's, or another lab's, is never touched

bridge_is_ours() { [ "$(cat "/sys/class/net/$LAB_BRIDGE/ifalias" 2>/dev/null)" = "$BRIDGE_OWNER" ]; }

network_up() {
    local uplink
    if [ ! -e "/sys/class/net/$LAB_BRIDGE" ]; then
        [ -z "$(ip -4 -o address show to "$LAB_NET.0/24")" ] || die "$LAB_NET.0/24 is in use on this machine: choose another LAB_NET"
        ip link add "$LAB_BRIDGE" type bridge
        ip link set "$LAB_BRIDGE" alias "$BRIDGE_OWNER"
        ip address add "$LAB_NET.1/24" dev "$LAB_BRIDGE"
    fi
    bridge_is_ours || die "the bridge $LAB_BRIDGE belongs to someone else: choose another LAB_BRIDGE"
    ip link set "$LAB_BRIDGE" up
    uplink=$(ip -4 route show default | sed -n 's/.* dev \([^ ]*\).*/\1/p;q')
    [ -z "$uplink" ] || network_way_out "$uplink"
    faults_render
}

network_way_out() ( # UPLINK: hosts may ask names and fetch packages, nothing else
    local uplink=$1
    flock 6
    [ -f "$FORWARD_RECORD" ] || cat /proc/sys/net/ipv4/ip_forward >"$FORWARD_RECORD"
    echo 1 >/proc/sys/net/ipv4/ip_forward
    nft -f - <<RULES
table ip $NAT_TABLE
delete table ip $NAT_TABLE
table ip $NAT_TABLE {
    chain forward {
        type filter hook forward priority filter; policy accept
        iifname "$LAB_BRIDGE" oifname "$uplink" meta l4proto { tcp, udp } th dport { 53, 80, 443 } accept
        iifname "$LAB_BRIDGE" oifname "$uplink" drop
    }
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept
        ip saddr $LAB_NET.0/24 oifname "$uplink" masquerade
    }
}
RULES
    # Where another program made FORWARD drop by default, the lab's frames must be let through there as well.
    if iptables -S FORWARD 2>/dev/null | grep -q -- '-P FORWARD DROP'; then
        iptables -w -C FORWARD -i "$LAB_BRIDGE" -j ACCEPT 2>/dev/null || iptables -w -I FORWARD -i "$LAB_BRIDGE" -j ACCEPT
        iptables -w -C FORWARD -o "$LAB_BRIDGE" -j ACCEPT 2>/dev/null || iptables -w -I FORWARD -o "$LAB_BRIDGE" -j ACCEPT
    fi
) 6>"$NETWORK_LOCK"

network_down() {
    local stranger
    [ ! -e "/sys/class/net/$LAB_BRIDGE" ] || bridge_is_ours || return 0
    nft delete table bridge "$FAULT_TABLE" 2>/dev/null || true
    nft delete table ip "$NAT_TABLE" 2>/dev/null || true
    # None of these is there where the machine lets everything through.
    iptables -w -D FORWARD -i "$LAB_BRIDGE" -j ACCEPT 2>/dev/null || true
    iptables -w -D FORWARD -o "$LAB_BRIDGE" -j ACCEPT 2>/dev/null || true
    if [ -e "/sys/class/net/$LAB_BRIDGE" ]; then
        stranger=$(find "/sys/class/net/$LAB_BRIDGE/brif/" -mindepth 1 -printf '%f\n' | grep -v "^$LAB_BRIDGE-p[0-9]*$" | xargs) || true
        if [ -n "$stranger" ]; then # left in place, and told as left over
            say "down: $stranger, not of this lab, is plugged into $LAB_BRIDGE"
        else
            ip link delete "$LAB_BRIDGE"
        fi
    fi
    # Forwarding goes back to what it was, unless someone else still relies on it.
    (
        flock 6
        if [ -f "$FORWARD_RECORD" ] && ! nft list ruleset | grep -q masquerade; then
            cat "$FORWARD_RECORD" >/proc/sys/net/ipv4/ip_forward
            rm -f "$FORWARD_RECORD"
        fi
    ) 6>"$NETWORK_LOCK"
}

# --- faults -----------------------------------------------------------------------------------------------------------

fault_cut() { # HOST [PEER]
    local host=$1 peer=${2:-}
    host_known "$host"
    [ -z "$peer" ] || host_known "$peer"
    if [ -n "$peer" ]; then fault_add "pair $host $peer"; else fault_add "cut $host"; fi
    faults_render
}

fault_loss() { # HOST PERCENT
    host_known "$1"
    [[ $2 =~ ^(100|[1-9]?[0-9])$ ]] || die "loss: a whole percentage, 0 to 100"
    fault_drop "^loss $1 "
    fault_add "loss $1 $2"
    faults_render
}

fault_cut_link() { # HOST
    host_known "$1"
    fault_add "unplugged $1"
    fault_reapply "$1"
}

fault_slow() { # HOST RATE
    host_known "$1"
    [[ $2 =~ ^[0-9]+[kmg]?bit$ ]] || die "slow: a rate such as 512kbit or 1mbit"
    fault_drop "^slow $1 "
    fault_add "slow $1 $2"
    fault_reapply "$1"
}

fault_heal() { # HOST|all
    local host
    if [ "$1" = all ]; then
        for host in $(host_names); do fault_heal "$host"; done
        return
    fi
    host=$1
    host_known "$host"
    fault_drop "^[a-z]* $host\( \|$\)"
    fault_drop "^pair [^ ]* $host$"
    faults_render
    if host_running "$host"; then
        ip link set "$(port_of "$host")" up
        tc qdisc delete dev "$(port_of "$host")" root 2>/dev/null || true
        in_host_network "$host" tc qdisc delete dev eth0 root 2>/dev/null || true
    fi
}

fault_reapply() { # HOST: what was laid on its cable; a fresh boot has a fresh cable
    local kind name rate
    [ -f "$RUN/faults" ] && host_running "$1" || return 0
    while read -r kind name rate; do
        case $kind:$name in
        "unplugged:$1") ip link set "$(port_of "$1")" down ;;
        "slow:$1")
            tc qdisc replace dev "$(port_of "$1")" root tbf rate "$rate" burst 16kb latency 200ms
            in_host_network "$1" tc qdisc replace dev eth0 root tbf rate "$rate" burst 16kb latency 200ms ;;
        esac
    done <"$RUN/faults"
}

in_host_network() {
    local host=$1
    shift
    nsenter --target "$(host_pid "$host")" --net -- "$@"
}

fault_add() { grep -qxF -- "$1" "$RUN/faults" 2>/dev/null || echo "$1" >>"$RUN/faults"; }
fault_drop() { [ ! -f "$RUN/faults" ] || sed -i "/$1/d" "$RUN/faults"; }

# A frame from a host passes prerouting whether it is for the machine or another host; one to a host passes output when
# the machine sent it and forward when another host did. Dropping in all three is silence in both directions.
faults_render() {
    {
        echo "table bridge $FAULT_TABLE"
        echo "delete table bridge $FAULT_TABLE"
        echo "table bridge $FAULT_TABLE {"
        fault_chain from_host prerouting iifname
        fault_chain to_host output oifname
        fault_chain between forward oifname
        echo "}"
    } | nft -f -
}

fault_chain() { # NAME HOOK iifname|oifname
    local kind host argument
    echo "    chain $1 { type filter hook $2 priority filter; policy accept"
    while read -r kind host argument; do
        case $kind in
        cut) echo "        $3 \"$(port_of "$host")\" drop" ;;
        loss) echo "        $3 \"$(port_of "$host")\" numgen random mod 100 < $argument drop" ;;
        pair)
            [ "$2" = forward ] || continue
            echo "        iifname \"$(port_of "$host")\" oifname \"$(port_of "$argument")\" drop"
            echo "        iifname \"$(port_of "$argument")\" oifname \"$(port_of "$host")\" drop" ;;
        esac
    done < <(cat "$RUN/faults" 2>/dev/null)
    echo "    }"
}
