# shellcheck shell=bash
# Sourced by cases and the demonstration: the lab as a cloud's operator has it, with tallybook and an inventory on ctl.
# Wants LAB_HOME (this directory), WORK (a directory to write in) and the lab's own settings.

TALLYBOOK_BIN=${TALLYBOOK_BIN:-$LAB_HOME/../../target/tallybook-bin}

lab() { "$LAB_HOME/lab" "$@"; }

# on HOST COMMAND...: on the host itself, not over its network; arguments arrive as they are.
on() { "$LAB_HOME/lab" attach "$@" </dev/null; }

# ctl COMMAND...: as the operator on the controller, e.g. `ctl tallybook cloud check`.
ctl() { on ctl env -C /root TALLYBOOK_INVENTORY=/root/cloud.toml "$@"; }

address_of() { # HOST
    "$LAB_HOME/lab" hosts | awk -v name="$1" '$1 == name { print $2; found = 1 } END { exit !found }'
}

install_tallybook() {
    local program
    for program in tallybook tallybook-agent; do
        "$LAB_HOME/lab" push ctl "$TALLYBOOK_BIN/$program" "/usr/local/bin/$program"
    done
}

write_inventory() { # the seed's cloud, onto ctl
    local key
    key=$(on ctl cat /root/.ssh/id_ed25519.pub)
    inventory "$key" >"$WORK/cloud.toml"
    "$LAB_HOME/lab" push ctl "$WORK/cloud.toml" /root/cloud.toml
}

add_to_inventory() { # what comes in on standard input is put below what is there
    "$LAB_HOME/lab" pull ctl /root/cloud.toml "$WORK/cloud.toml"
    cat >>"$WORK/cloud.toml"
    "$LAB_HOME/lab" push ctl "$WORK/cloud.toml" /root/cloud.toml
}

inventory() { # OPERATOR'S-PUBLIC-KEY
    cat <<INVENTORY
[cloud]
name = "lab"
controller = "ctl"

[defaults.host]
user = "root"
identity = "/root/.ssh/id_ed25519"
package_cache = "/var/cache/tallybook-lab/debs"

[defaults.container]
distribution = "debian"
release = "bookworm"
keys = ["operator"]
forward_ssh = true

[network]
subnet = "10.5.0.0/16"

[hosts.ctl]
local = true

[hosts.cn1]
address = "$(address_of cn1)"
groups = ["compute"]

[hosts.cn2]
address = "$(address_of cn2)"
groups = ["compute"]

[groups]
compute = { members = ["cn1", "cn2"] }

[keys]
operator = "$1"

[templates.makinastates]
builder = "lxcmakinastates"

[containers.lxcmakinastates]
host = "ctl"

[containers."d1.foo.net"]
host = "cn1"
template = "makinastates"

[containers."d2.foo.net"]
host = "cn2"
template = "makinastates"

[containers.scratch]
host = "cn2"
distribution = "busybox"
forward_ssh = false
INVENTORY
}
