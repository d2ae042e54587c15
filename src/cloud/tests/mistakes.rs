//! A corpus of bad inventories, and exactly what is said about each.

use crate::cloud::parse;

/// An inventory, and what is shown of it.
#[rustfmt::skip]
const CASES: &[(&str, &str)] = &[
    (
        r##"[hosts.cn1]
prot = 22
usr = "x"
"##,
        r##"cloud.toml:2:1: unknown key "prot" in host "cn1"; did you mean "port"?
cloud.toml:3:1: unknown key "usr" in host "cn1"; did you mean "user"?
"##,
    ),
    (
        r##"[host.cn1]
"##,
        r##"cloud.toml:1:2: unknown key "host" in the inventory; did you mean "hosts"?
"##,
    ),
    (
        r##"[hosts.cn1]
[containers.a]
host = "cn9"
"##,
        r##"cloud.toml:3:8: unknown host "cn9"; did you mean "cn1"?
"##,
    ),
    (
        r##"[hosts.cn1]
groups = ["computte"]
[groups.compute]
"##,
        r##"cloud.toml:2:11: unknown group "computte"; did you mean "compute"?
"##,
    ),
    (
        r##"[hosts.h]
[containers.a]
host = "h"
template = "makina"
keys = ["alicia", 7]
[templates.makinas]
[keys]
alice = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
"##,
        r##"cloud.toml:4:12: unknown template "makina"; did you mean "makinas"?
cloud.toml:5:9: unknown key holder "alicia"; did you mean "alice"?
cloud.toml:5:19: each of keys must be a string, not a whole number
"##,
    ),
    (
        r##"[containers.a]
"##,
        r##"cloud.toml:1:1: container "a" has no host; say where it runs: host = "…"
"##,
    ),
    (
        r##"[hosts.h]
port = "22"
user = 5
local = "yes"
groups = "compute"
network = []
[hosts]
i = 3
"##,
        r##"cloud.toml:2:8: port must be a whole number, not a string
cloud.toml:3:8: user must be a string, not a whole number
cloud.toml:4:9: local must be true or false, not a string
cloud.toml:5:10: groups must be an array, not a string
cloud.toml:6:11: network must be a table, not an array
cloud.toml:8:5: host "i" must be a table, not a whole number
"##,
    ),
    (
        r##"[hosts.h]
port = 0
[hosts.i]
port = 65536
[hosts.j]
port = 99999999999999999999
"##,
        r##"cloud.toml:2:8: port must be from 1 to 65535
cloud.toml:4:8: port must be from 1 to 65535
cloud.toml:6:8: port must be from 1 to 65535
"##,
    ),
    (
        r##"[network]
subnet = "10.5.0.0/33"
gateway = "10.5.0"
mac_prefix = "01:16:3e"
bridge = "a bridge"
dhcp_lease = "1m"
forward_ports = "60000-40000"
dns = ["9.9.9.9", "quad9"]
domain = "exa mple"
mtu = 1500
forward_address = "1.2.3.4"
"##,
        r##"cloud.toml:2:10: subnet: a subnet has 8 to 30 bits, not 33
cloud.toml:3:11: gateway: invalid IPv4 address syntax
cloud.toml:4:14: mac_prefix: 01:16:3e is a multicast MAC address; the first byte must be even
cloud.toml:5:10: bridge must be an interface name: a letter, then at most 14 letters, digits, '-', '_' and '.'
cloud.toml:6:14: dhcp_lease must be a duration such as "12h", from 2 minutes to 365 days
cloud.toml:7:17: forward_ports: the port range 60000-40000 ends before it starts
cloud.toml:8:19: dns must list IP addresses
cloud.toml:9:10: domain must be a DNS name
cloud.toml:10:1: "mtu" in [network] is not supported yet; remove it: nothing would act on it
cloud.toml:11:1: "forward_address" can't be set in [network]; each host has its own: set it in [hosts.NAME.network]
"##,
    ),
    (
        r##"[network]
subnet = "10.5.0.1/16"
"##,
        r##"cloud.toml:2:10: subnet: 10.5.0.1/16 is an address inside the subnet 10.5.0.0/16, not the subnet
"##,
    ),
    (
        r##"[network]
subnet = "10.5.0.0"
forward_ports = "40000"
mac_prefix = "00:16"
"##,
        r##"cloud.toml:2:10: subnet: a subnet is written ADDRESS/BITS, such as 10.5.0.0/16
cloud.toml:3:17: forward_ports: a port range is written FIRST-LAST, such as 40000-60000, with ports from 1 to 65535
cloud.toml:4:14: mac_prefix: a MAC prefix is three pairs of hexadecimal digits, such as 00:16:3e
"##,
    ),
    (
        r##"[network]
subnet = "10.5.0.0/24"
gateway = "10.5.1.1"
"##,
        r##"cloud.toml:3:11: gateway 10.5.1.1 is not a machine's address in 10.5.0.0/24
"##,
    ),
    (
        r##"[hosts.h]
[containers]
a = { host = "h", address = "10.6.0.9" }
b = { host = "h", address = "10.5.0.1" }
c = { host = "h", address = "10.5.0.0" }
d = { host = "h", address = "10.5.255.255" }
e = { host = "h", address = "10.5.0.256" }
f = { host = "h", mac = "00:16:3e:00:00" }
g = { host = "h", mac = "01:16:3e:00:00:01" }
"##,
        r##"cloud.toml:3:29: address 10.6.0.9 is outside the subnet 10.5.0.0/16
cloud.toml:4:29: address 10.5.0.1 is the gateway's
cloud.toml:5:29: address 10.5.0.0 is the network address of 10.5.0.0/16
cloud.toml:6:29: address 10.5.255.255 is the broadcast address of 10.5.0.0/16
cloud.toml:7:29: address: invalid IPv4 address syntax
cloud.toml:8:25: mac: a MAC address is six pairs of hexadecimal digits, such as 00:16:3e:12:34:56
cloud.toml:9:25: mac: 01:16:3e:00:00:01 is a multicast MAC address; the first byte must be even
"##,
    ),
    (
        r##"[hosts.h]
[hosts.i]
[containers.web]
host = "h"
address = "10.5.0.9"
mac = "00:16:3e:00:00:01"
domains = ["foo.net"]
ports = [{ container = 80, host = 80 }]
[containers.db]
host = "i"
address = "10.5.0.9"
mac = "00-16-3E-00-00-01"
domains = ["Foo.net"]
ports = [{ container = 80, host = 80 }]
[containers.cache]
host = "h"
ports = [{ container = 8080, host = 80 }, { container = 8080, host = 80, protocol = "udp" }]
"##,
        r##"cloud.toml:11:11: address 10.5.0.9 is used by container "web" too
  cloud.toml:5: first used here
cloud.toml:12:7: MAC address 00:16:3e:00:00:01 is used by container "web" too
  cloud.toml:6: first used here
cloud.toml:13:12: domain foo.net is used by container "web" too
  cloud.toml:7: first used here
cloud.toml:17:37: port 80/tcp of host "h" is used by container "web" too
  cloud.toml:8: first used here
"##,
    ),
    (
        r##"[hosts.h]
port = 2222
[containers.a]
host = "h"
ports = [
  { container = 22, host = 2222 },
  { host = 1 },
  { container = 80, host = 70000 },
  { container = 80, protocol = "sctp" },
  { container = 81, protocol = "tpc", hostPort = 4 },
  { name = "a b", container = 82 },
  { name = "x", container = 83 },
  { name = "x", container = 84 },
  85,
]
"##,
        r##"cloud.toml:6:28: port 2222 of host "h" is its SSH daemon's
cloud.toml:7:3: a port of container "a" doesn't say which; give the port inside: container = 80
cloud.toml:8:28: host must be from 1 to 65535
cloud.toml:9:32: protocol = "sctp" is not supported yet; use "tcp" or "udp"
cloud.toml:10:32: protocol must be "tcp" or "udp", not "tpc"; did you mean "tcp"?
cloud.toml:10:39: "hostPort" can't be set in a port of container "a"; a forward is { container = 80, host = 8080, protocol = "tcp" }
cloud.toml:11:12: port "a b" must start with a letter or a digit and have only letters, digits, '-', '_' and '.', at most 64 in all
cloud.toml:13:3: two ports of container "a" are called "x"
  cloud.toml:12: the first one
cloud.toml:14:3: each of ports must be a table, not a whole number
"##,
    ),
    (
        r##"[hosts.h]
[containers.a]
host = "h"
forward_ssh = true
ports = [{ name = "ssh", container = 2022 }]
"##,
        r##"cloud.toml:5:10: the port called "ssh" of container "a" is not its port 22; call it otherwise, or set forward_ssh = false
"##,
    ),
    (
        r##"[hosts.a]
address = "192.0.2.1"
[hosts.b]
address = "192.0.2.1"
port = 22
[hosts.c]
address = "192.0.2.1"
port = 23
"##,
        r##"cloud.toml:4:11: host "b" has the address and port of host "a": 192.0.2.1 port 22
  cloud.toml:1: that host
"##,
    ),
    (
        r##"[cloud]
controller = "b"
name = "a cloud"
[hosts.a]
local = true
[hosts.b]
local = true
"##,
        r##"cloud.toml:2:14: the controller is "b", but host "a" is local
  cloud.toml:4: local here
cloud.toml:3:8: cloud name "a cloud" must start with a letter or a digit and have only letters, digits, '-', '_' and '.', at most 64 in all
cloud.toml:7:9: host "b" is local, and so is "a"
  cloud.toml:4: the first local host
"##,
    ),
    (
        r##"[hosts.a]
local = true
jump = "b"
[hosts.b]
[hosts.c]
jump = "a"
"##,
        r##"cloud.toml:3:8: host "a" is local and can't be behind a jump host
cloud.toml:5:8: host "c" has the jump host "a", which is local
  cloud.toml:1: local here
"##,
    ),
    (
        r##"[hosts.a]
jump = "b"
[hosts.b]
jump = "c"
[hosts.c]
jump = "b"
"##,
        r##"cloud.toml:3:8: jump hosts lead in a circle: b → c → b
"##,
    ),
    (
        r##"[groups]
a = { members = ["b"] }
b = { members = ["@c"] }
c = { members = ["a"] }
d = { members = ["d"] }
e = { members = ["a"] }
"##,
        r##"cloud.toml:4:18: groups contain each other: a → b → c → a
cloud.toml:5:18: groups contain each other: d → d
"##,
    ),
    (
        r##"[hosts.cn1]
[groups]
a = { members = ["cn2", "@aa", "zz*", "[", "cn1"], colour = "red" }
"##,
        r##"cloud.toml:3:18: unknown host or group "cn2"; did you mean "cn1"?
cloud.toml:3:25: unknown group "aa"; did you mean "a"?
cloud.toml:3:32: "zz*" matches no host
cloud.toml:3:39: "[" is not a glob: unclosed character class; missing ']'
cloud.toml:3:52: unknown key "colour" in group "a"
"##,
    ),
    (
        r##"[hosts.x]
[groups.x]
[containers.x]
host = "x"
[groups.all]
"##,
        r##"cloud.toml:1:8: "x" is a host and a container
  cloud.toml:3: the other one
cloud.toml:1:8: "x" is a host and a group
  cloud.toml:2: the other one
cloud.toml:2:9: "x" is a group and a container
  cloud.toml:3: the other one
cloud.toml:5:9: no group can be called "all"; a limit means every host by it
"##,
    ),
    (
        r##"[hosts."a/b"]
[containers."-x"]
host = "a/b"
[groups."a b"]
[templates.none]
"##,
        r##"cloud.toml:1:8: host name "a/b": '/' at byte 1 is not allowed; use letters, digits, '-', '_' and '.'
cloud.toml:2:13: container name "-x" must start and end with a letter or a digit and have no empty part between dots
cloud.toml:4:9: group "a b" must start with a letter or a digit and have only letters, digits, '-', '_' and '.', at most 64 in all
cloud.toml:5:12: no template can be called "none"; a container means by it that it has no template
"##,
    ),
    (
        r##"[hosts.h]
become = "su"
password = "hunter2"
[hosts.i]
become = "sudoo"
user = "Root"
identity = "~/.ssh/id.pub"
address = "root@i"
vars = {}
"##,
        r##"cloud.toml:2:10: become = "su" is not supported yet; use "none" or "sudo"
cloud.toml:3:1: "password" can't be set in host "h"; passwords are not kept here: log in by key
cloud.toml:5:10: become must be "none" or "sudo", not "sudoo"; did you mean "sudo"?
cloud.toml:6:8: user "Root" is not a user name
cloud.toml:7:12: identity is the path of a public key; name the private one, without .pub
cloud.toml:8:11: address "root@i" is neither an IP address nor a DNS name; user and port have keys of their own
cloud.toml:9:1: "vars" in host "i" is not supported yet; remove it: nothing would act on it
"##,
    ),
    (
        r##"[keys]
a = "ssh-ed25519 AAAA"
b = "ssh-dss AAAAB3NzaC1kc3MAAACB"
c = "command=\"id\" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
d = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\nssh-rsa x"
e = []
f = 4
"g h" = "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
"##,
        r##"cloud.toml:2:5: key "a": the key after ssh-ed25519 is damaged or cut short; paste a line of an id_*.pub file, without options
cloud.toml:3:5: key "b": a public key starts with its type, such as ssh-ed25519; paste a line of an id_*.pub file, without options
cloud.toml:4:5: key "c": a public key starts with its type, such as ssh-ed25519; paste a line of an id_*.pub file, without options
cloud.toml:5:5: key "d": a public key is one line without control characters; paste a line of an id_*.pub file, without options
cloud.toml:6:5: key "e" is empty
cloud.toml:7:5: key "f" must be a public key, or an array of them
cloud.toml:8:1: key holder "g h" must start with a letter or a digit and have only letters, digits, '-', '_' and '.', at most 64 in all
cloud.toml:8:9: key "g h": the key after ssh-rsa is damaged or cut short; paste a line of an id_*.pub file, without options
"##,
    ),
    (
        r##"[hosts.h]
[containers.a]
host = "h"
release = "bookwrom"
mirror = "ftp://x"
variant = "mini"
packages = ["nginx", "--force"]
backing = "zfs"
memory = "1G"
autostrat = true
domains = ["a b"]
provision = [
  { run = [] },
  { run = ["x"], script = "y" },
  { creates = "/x" },
  { script = " " },
  { run = ["x"], creates = "x", timeout_s = 0 },
  { command = "x", run = ["x"] },
]
"##,
        r##"cloud.toml:4:11: release "bookwrom" is not a Debian suite; did you mean "bookworm"?
cloud.toml:5:10: mirror must be an http:// or https:// address without spaces
cloud.toml:6:11: variant must be "minbase", not "mini"
cloud.toml:7:22: "--force" is not a package name
cloud.toml:8:11: backing = "zfs" is not supported yet; use "auto" or "dir" or "overlay" or "reflink"
cloud.toml:9:1: "memory" in container "a" is not supported yet; remove it: nothing would act on it
cloud.toml:10:1: unknown key "autostrat" in container "a"; did you mean "autostart"?
cloud.toml:11:12: domain "a b" is not a DNS name
cloud.toml:13:11: run names no program; write run = ["program", "argument"]
cloud.toml:14:3: a provision step of container "a" needs run or script, one of the two
cloud.toml:15:3: a provision step of container "a" needs run or script, one of the two
cloud.toml:16:14: script is empty
cloud.toml:17:28: creates must be an absolute path inside the container
cloud.toml:17:45: timeout_s must be from 1 to 86400
cloud.toml:18:5: "command" can't be set in a provision step of container "a"; use run = ["program", "argument"]
"##,
    ),
    (
        r##"[hosts.h]
[secrets.good]
file = "/etc/good"
[secrets.both]
file = "/etc/both"
env = "BOTH"
[secrets.none]
[secrets.near]
file = "near"
[secrets.plain]
value = "hunter2"
[secrets.odd]
env = "A-B"
[secrets.Big]
env = "BIG"
[secrets.ld_preload]
env = "LD_PRELOAD"
[secrets.later]
command = ["pass", "x"]
env = "LATER"
[secrets.typed]
env = 1
fiel = "/x"
[containers.a]
host = "h"
provision = [
  { run = ["x"], secrets = ["good", "god"] },
  { run = ["x"], secrets = "good" },
]
[defaults.container]
secrets = []
"##,
        r##"cloud.toml:4:1: secret "both" needs file or env, one of the two
cloud.toml:7:1: secret "none" needs file or env, one of the two
cloud.toml:9:8: file must be an absolute path on the controller
cloud.toml:10:1: secret "plain" needs file or env, one of the two
cloud.toml:11:1: "value" can't be set in secret "plain"; a value has no place here, it would be recorded: put it into a file and name that
cloud.toml:13:7: env must name a variable of the controller's environment, not "A-B"
cloud.toml:14:10: a secret's name starts with a small letter and has only small letters, digits and '_', at most 64 in all
cloud.toml:16:10: no secret can be called "ld_preload": the variable LD_PRELOAD has a meaning of its own
cloud.toml:19:1: "command" in secret "later" is not supported yet; remove it: nothing would act on it
cloud.toml:22:7: env must be a string, not a whole number
cloud.toml:23:1: unknown key "fiel" in secret "typed"; did you mean "file"?
cloud.toml:27:37: unknown secret "god"; did you mean "good"?
cloud.toml:28:28: secrets must be an array, not a string
cloud.toml:31:1: "secrets" can't be set in [defaults.container]; an entry of provision names those that it needs
"##,
    ),
    (
        r##"[defaults.container]
host = "h"
release = "Trixie!"
mirror = "https://user:hunter2@mirror.example/debian"
[defaults.host]
address = "x"
[defaults.host.network]
subnet = "10.5.0.0/16"
forward_address = "192.0.2.1"
[defaults.template]
"##,
        r##"cloud.toml:2:1: "host" can't be set in [defaults.container]; each container has its own: set it in [containers.NAME]
cloud.toml:3:11: release "Trixie!" is not a Debian suite; did you mean "trixie"?
cloud.toml:4:10: mirror holds a user or a password; put it into the host's /etc/apt/auth.conf
cloud.toml:6:1: "address" can't be set in [defaults.host]; each host has its own: set it in [hosts.NAME]
cloud.toml:8:1: "subnet" can't be set in network of [defaults.host]; the whole cloud shares one: set it in [network]
cloud.toml:9:1: "forward_address" can't be set in network of [defaults.host]; each host has its own: set it in [hosts.NAME.network]
cloud.toml:10:11: unknown key "template" in [defaults]
"##,
    ),
    (
        r##"[hosts.h]
[templates.t]
builder = "aa"
scrub = { keep = ["a b"], only = [] }
retain = 0
[containers.a]
host = "h"
template = "t"
release = "trixie"
[containers.b]
host = "h"
distribution = "busybox"
packages = ["nginx"]
[containers.c]
host = "h"
distribution = "ubuntu"
"##,
        r##"cloud.toml:3:11: unknown container "aa"; did you mean "a"?
cloud.toml:4:19: scrub operation "a b" must start with a letter or a digit and have only letters, digits, '-', '_' and '.', at most 64 in all
cloud.toml:4:27: "only" in scrub of template "t" is not supported yet; remove it: nothing would act on it
cloud.toml:5:10: retain must be from 1 to 1000
cloud.toml:9:11: release has no meaning for container "a"; it is made from a template
cloud.toml:13:12: packages has no meaning for container "b"; it is made of busybox alone
cloud.toml:16:16: distribution = "ubuntu" is not supported yet; use "debian" or "busybox"
"##,
    ),
    (
        r##"[proxy]
"##,
        r##"cloud.toml:1:2: "proxy" in the inventory is not supported yet; remove it: nothing would act on it
"##,
    ),
    (
        r##"cloud = 3
[network]
subnet = 5
"##,
        r##"cloud.toml:1:9: cloud must be a table, not a whole number
cloud.toml:3:10: subnet must be a string, not a whole number
"##,
    ),
    (
        r##"[hosts.h]
address = "x
port = 22
"##,
        r##"cloud.toml:2:13: syntax: invalid basic string, expected `"`
"##,
    ),
    (
        r##"[hosts.h]
[hosts.h]
port = = 2
"##,
        r##"cloud.toml:2:8: syntax: duplicate key
cloud.toml:3:8: syntax: extra `=`, expected nothing
"##,
    ),
    (
        r##"é = 1
"日本" = { "ü" = 1 }
"##,
        r##"cloud.toml:1:1: syntax: invalid unquoted key, expected letters, numbers, `-`, `_`
"##,
    ),
    (
        r##"[hosts.h]
[hosts.h]
"##,
        r##"cloud.toml:2:8: syntax: duplicate key
"##,
    ),
    (
        r##"[hosts.h]
network = { "ü日" = 1, bridg = "x" }
"##,
        r##"cloud.toml:2:13: unknown key "ü日" in network of host "h"
cloud.toml:2:23: unknown key "bridg" in network of host "h"; did you mean "bridge"?
"##,
    ),
];

#[test]
fn every_mistake_is_named_with_its_place() {
    check(CASES);
}

pub(super) fn check(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        let shown = match parse("cloud.toml", text) {
            Ok(_) => "taken".to_owned(),
            Err(diagnostics) => diagnostics.to_string(),
        };
        assert_eq!(shown, expected.trim_end(), "in:\n{text}");
    }
}
