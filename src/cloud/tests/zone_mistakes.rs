//! Bad zones, and exactly what is said about each.

use super::mistakes::check;

/// An inventory, and what is shown of it.
#[rustfmt::skip]
const CASES: &[(&str, &str)] = &[
    (
        r##"[hosts.h]
public = ["h.example.net"]
domains = ["h example", "h.example.net"]
[containers.c]
host = "h"
domains = ["h.example.net"]
[dns]
servers = ["h", "h", "i"]
contact = "host.master@example.net"
ttl = "soon"
inside = ["10.0.0.1/8"]
records = []
[zones."example.net"]
alias = "example.org"
nameservers = ["n s"]
transfer = ["ns"]
dnssec = true
records = [
    { name = "www", type = "A", value = "::1" },
    { name = "www.example.org", type = "A", value = "192.0.2.1" },
    { type = "CNAME", value = "www" },
    { name = "x", type = "A", value = "192.0.2.1", ttl = "1m" },
    { name = "x", type = "A", value = "192.0.2.2" },
    { name = "x", type = "CNAME", value = "www", view = "inside" },
    { name = "y", type = "SPF", value = "v=spf1" },
    { name = "y", type = "AAA", value = "::1" },
    { name = "y", view = "everywhere" },
]
[zones."*.example.org"]
[zones."example.com"]
nameservers = ["ns"]
alias = "example.com"
records = []
[zones."Example.com"]
nameservers = []
"##,
        r##"cloud.toml:2:11: public must list IP addresses
cloud.toml:3:12: domain "h example" is not a DNS name
cloud.toml:6:12: domain h.example.net is host "h"'s
  cloud.toml:1: that host
cloud.toml:8:17: host "h" is named twice
cloud.toml:8:22: unknown host "i"; did you mean "h"?
cloud.toml:9:11: contact must be an address such as "hostmaster@example.net", without a dot before the @
cloud.toml:10:7: ttl must be a duration of whole seconds such as "5m", at most 68 years
cloud.toml:11:11: inside: 10.0.0.1/8 is an address inside the subnet 10.0.0.0/8, not the subnet
cloud.toml:12:1: "records" can't be set in [dns]; each zone has its own: set it in [zones.NAME]
cloud.toml:14:9: unknown zone "example.org"; did you mean "example.com"?
cloud.toml:15:16: "n s.example.net" is not a DNS name
cloud.toml:16:13: transfer must list IP addresses
cloud.toml:17:1: "dnssec" in zone "example.net" is not supported yet; remove it: nothing would act on it
cloud.toml:18:11: zone "example.net" is an alias and can't have records of its own
cloud.toml:19:41: A records are written as an IPv4 address
cloud.toml:20:14: "www.example.org" is not in zone "example.net"
cloud.toml:21:5: a zone's own name can't be a CNAME: it has SOA and NS records
cloud.toml:23:5: the A records of "x.example.net" have different ttls
  cloud.toml:22: the other record
cloud.toml:24:5: "x.example.net" has a CNAME, and nothing can stand beside it
  cloud.toml:22: the other record
cloud.toml:25:26: there is no type "SPF" of records here; it was given up for TXT (RFC 7208, 3.1)
cloud.toml:26:26: there is no type "AAA" of records here; did you mean "AAAA"?
cloud.toml:27:5: a record of zone "example.net" has no type; a record is { name = "www", type = "A", value = "192.0.2.1" }
cloud.toml:27:5: a record of zone "example.net" has no value; a record is { name = "www", type = "A", value = "192.0.2.1" }
cloud.toml:27:26: view must be "inside" or "outside", not "everywhere"
cloud.toml:29:1: zone "*.example.org" has no nameservers; give the names that its NS records have: nameservers = ["ns1"]
cloud.toml:29:8: zone "*.example.org" can't be a wildcard
cloud.toml:32:9: a zone can't be an alias of itself
cloud.toml:33:11: zone "example.com" is an alias and can't have records of its own
cloud.toml:34:1: zone "Example.com" has no nameservers; give the names that its NS records have: nameservers = ["ns1"]
cloud.toml:34:8: zone "example.com" is defined twice
  cloud.toml:30: the first one
"##,
    ),
    (
        r##"[network]
domain = "lan"
[hosts.h]
domains = ["h.example.net", "H.example.net"]
[containers."a.example.net"]
host = "h"
[containers.b]
host = "h"
domains = ["a.example.net", "c.lan"]
[containers.c]
host = "h"
[containers."h.example.net"]
host = "h"
[dns]
servers = ["h"]
contact = "hostmaster.example.net"
refresh = "500ms"
[zones."example.net"]
nameservers = ["*.example.net"]
records = [
    { type = "NS", value = "ns1" },
    { name = "there", type = "NS", value = "ns.there.example.net" },
    { name = "ns.there.example.net", type = "A", value = "192.0.2.1" },
    { name = "there", type = "DS", value = "1 13 2 00" },
    { name = "below", type = "DS", value = "1 13 2 00" },
    { name = "there", type = "A", value = "192.0.2.1" },
    { name = "x.there.example.net", type = "TXT", value = "never told" },
    { name = "y.below.example.net", type = "A", value = "192.0.2.1" },
    { name = "z.far.example.net", type = "MX", value = "0 ." },
    { name = "far", type = "NS", value = "ns.example.org" },
    { name = "near", type = "NS", value = "ns.example.org", view = "inside" },
    { name = "a.near.example.net", type = "MX", value = "0 .", view = "outside" },
    { name = "b.near.example.net", type = "MX", value = "0 ." },
    { name = "c.near.example.net", type = "MX", value = "0 .", view = "inside" },
    { type = "DS", value = "1 13 2 00" },
    { name = "*", type = "NS", value = "ns.example.org" },
    { name = "w", type = "MX", value = "10 *.example.org" },
    { name = "a_b", type = "A", value = "192.0.2.1" },
    { name = "_sip._udp.example.net", type = "SRV", value = "1 1 5060 sip_1" },
    { name = "old", type = "DNAME", value = "example.org" },
    { name = "old", type = "DNAME", value = "example.com" },
    { name = "old", type = "A", value = "192.0.2.1" },
    { name = "www.old.example.net", type = "A", value = "192.0.2.1" },
    { name = "w", type = "MX", value = "0 ." },
]
[zones."below.example.net"]
nameservers = ["ns.example.org"]
"##,
        r##"cloud.toml:4:29: domain h.example.net is named twice
cloud.toml:9:12: domain a.example.net is used by container "a.example.net" too
  cloud.toml:5: first used here
cloud.toml:10:1: domain c.lan is used by container "b" too
  cloud.toml:9: first used here
cloud.toml:12:1: domain h.example.net is host "h"'s
  cloud.toml:3: that host
cloud.toml:16:11: contact must be an address such as "hostmaster@example.net", without a dot before the @
cloud.toml:17:11: refresh must be a duration of whole seconds such as "5m", at most 68 years
cloud.toml:19:16: nameserver *.example.net is not a host's name
cloud.toml:21:5: the servers of the zone itself are not given as records; name them in nameservers of the zone
cloud.toml:26:5: "there.example.net" is answered elsewhere, for "there.example.net" has a NS record: its A record would never be told
  cloud.toml:22: the other record
cloud.toml:27:5: "x.there.example.net" is answered elsewhere, for "there.example.net" has a NS record: its TXT record would never be told
  cloud.toml:22: the other record
cloud.toml:28:5: "y.below.example.net" is in zone "below.example.net": give its records there
  cloud.toml:46: that zone
cloud.toml:29:5: "z.far.example.net" is answered elsewhere, for "far.example.net" has a NS record: its MX record would never be told
  cloud.toml:30: the other record
cloud.toml:34:5: "c.near.example.net" is answered elsewhere, for "near.example.net" has a NS record: its MX record would never be told
  cloud.toml:31: the other record
cloud.toml:35:5: DS records of a zone's own name are in the zone around it
cloud.toml:36:5: a wildcard can't have servers of its own
cloud.toml:37:5: "*.example.org" in a record of type MX is not a host's name; those have letters, digits, hyphens and dots
cloud.toml:38:5: "a_b.example.net" in a record of type A is not a host's name; those have letters, digits, hyphens and dots
cloud.toml:39:5: "sip_1.example.net" in a record of type SRV is not a host's name; those have letters, digits, hyphens and dots
cloud.toml:41:5: "old.example.net" has two DNAMEs
  cloud.toml:40: the other record
cloud.toml:43:5: "www.old.example.net" is answered elsewhere, for "old.example.net" has a DNAME record: its A record would never be told
  cloud.toml:40: the other record
cloud.toml:44:5: an MX record says that "w.example.net" has no mail, and another one who receives it
  cloud.toml:37: the other record
"##,
    ),
    (
        r##"[hosts.h]
[hosts.i]
[dns]
servers = ["h", "i"]
[zones."example.net"]
nameservers = ["ns"]
[zones."example.org"]
servers = ["h"]
nameservers = ["ns"]
key = "nosuch"
"##,
        r##"cloud.toml:5:8: zone "example.net" has several servers, and they have no key; name a secret by which they know each other: key = "…" in [dns]
cloud.toml:10:1: "key" can't be set in zone "example.org"; all zones have one: set it in [dns]
"##,
    ),
    (
        r##"[hosts.h]
[secrets.dns]
file = "/secret"
[dns]
key = "dsn"
"##,
        r##"cloud.toml:5:7: unknown secret "dsn"; did you mean "dns"?
"##,
    ),
];

#[test]
fn every_mistake_in_a_zone_is_named_with_its_place() {
    check(CASES);
}
