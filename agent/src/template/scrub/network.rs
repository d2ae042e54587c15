//! The container's name and its place in the network.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{Change, Group, Operation, Scrub, replace_word};
use crate::template::Source;
use crate::tree::{Error, Kind};

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "hostname",
        group: Group::Network,
        what: "set the host name to localhost",
        run: hostname,
    },
    Operation {
        name: "hosts",
        group: Group::Network,
        what: "take the old name and addresses out of /etc/hosts",
        run: hosts,
    },
    Operation {
        name: "resolv-conf",
        group: Group::Network,
        what: "empty resolv.conf; a symlink stays",
        run: resolv_conf,
    },
    Operation {
        name: "interfaces",
        group: Group::Network,
        what: "replace fixed network configuration by DHCP on eth0",
        run: interfaces,
    },
    Operation {
        name: "udev-net",
        group: Group::Network,
        what: "remove names that udev gave to network cards",
        run: |scrub| {
            scrub.remove_all(&[
                "etc/udev/rules.d/70-persistent-net.rules",
                "etc/udev/rules.d/75-persistent-net-generator.rules",
                "etc/udev/rules.d/80-net-setup-link.rules",
            ])
        },
    },
    Operation {
        name: "mail-name",
        group: Group::Network,
        what: "replace the old name in the mail servers' configuration by localhost",
        run: mail_name,
    },
];

const NEUTRAL: &[u8] = b"localhost";
const INTERFACES: &[u8] = b"auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n";
const NETWORKD: &[u8] = b"[Match]\nName=eth0\n\n[Network]\nDHCP=yes\n";
const NETPLAN: &[u8] = b"network:\n  version: 2\n  ethernets:\n    eth0:\n      dhcp4: true\n";

fn hostname(scrub: &mut Scrub<'_>) -> Result<(), Error> {
    for path in ["etc/hostname", "etc/HOSTNAME"] {
        scrub.edit(path, |_| b"localhost\n".to_vec())?;
    }
    scrub.remove("etc/machine-info")
}

fn hosts(scrub: &mut Scrub<'_>) -> Result<(), Error> {
    let source = scrub.source;
    scrub.edit("etc/hosts", |text| without_source(text, source))
}

/// `/etc/hosts` without the source's addresses, and without its names for other addresses.
pub(super) fn without_source(text: &[u8], source: &Source) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let shown = String::from_utf8_lossy(line);
        let code = shown.split('#').next().unwrap_or_default();
        let mut words = code.split_whitespace();
        let Some(address) = words.next() else {
            out.extend_from_slice(line);
            continue;
        };
        let names: Vec<&str> = words.collect();
        let kept: Vec<&str> = names
            .iter()
            .copied()
            .filter(|name| !is_of_source(name, source))
            .collect();
        let parsed = address.parse();
        // By Debian's custom 127.0.1.1 is the host's own name, whatever it was.
        if address == "127.0.1.1" || parsed.is_ok_and(|address| source.addresses.contains(&address))
        {
            continue;
        }
        if kept.len() == names.len() {
            out.extend_from_slice(line);
        } else if !kept.is_empty() {
            out.extend_from_slice(format!("{address}\t{}\n", kept.join(" ")).as_bytes());
        }
    }
    out
}

fn is_of_source(name: &str, source: &Source) -> bool {
    source.names.iter().any(|of_source| {
        let (name, of_source) = (name.to_ascii_lowercase(), of_source.to_ascii_lowercase());
        name == of_source || name.starts_with(&format!("{of_source}."))
    })
}

fn resolv_conf(scrub: &mut Scrub<'_>) -> Result<(), Error> {
    scrub.empty("etc/resolv.conf")?;
    scrub.remove_in("etc", |name| name.starts_with(b"resolv.conf."))?;
    scrub.remove("etc/resolvconf/resolv.conf.d/original")
}

fn interfaces(scrub: &mut Scrub<'_>) -> Result<(), Error> {
    let source = scrub.source.clone();
    let neutral = |with: &'static [u8]| {
        let source = source.clone();
        move |text: &[u8]| {
            if is_fixed(text, &source) {
                with.to_vec()
            } else {
                text.to_vec()
            }
        }
    };
    scrub.edit("etc/network/interfaces", neutral(INTERFACES))?;
    each_file(
        scrub,
        "etc/network/interfaces.d",
        |_| true,
        |scrub, path| {
            if is_fixed(&scrub.root.read(path, super::EDIT_LEN_MAX)?, &source) {
                scrub.remove(path)?;
            }
            Ok(())
        },
    )?;
    each_file(
        scrub,
        "etc/netplan",
        |name| name.ends_with(b".yaml"),
        |scrub, path| scrub.edit(path, neutral(NETPLAN)),
    )?;
    each_file(
        scrub,
        "etc/systemd/network",
        |name| name.ends_with(b".network"),
        |scrub, path| scrub.edit(path, neutral(NETWORKD)),
    )?;
    each_file(
        scrub,
        "etc/systemd/network",
        |name| !name.ends_with(b".network"),
        |scrub, path| {
            if is_fixed(&scrub.root.read(path, super::EDIT_LEN_MAX)?, &source) {
                scrub.remove(path)?;
            }
            Ok(())
        },
    )?;
    scrub.clear("etc/NetworkManager/system-connections")
}

fn each_file(
    scrub: &mut Scrub<'_>,
    dir: &str,
    which: fn(&[u8]) -> bool,
    mut act: impl FnMut(&mut Scrub<'_>, &Path) -> Result<(), Error>,
) -> Result<(), Error> {
    let (dir, names) = scrub.list(dir)?;
    for name in names.iter().filter(|name| which(name.as_bytes())) {
        let path = dir.join(name);
        if scrub.root.stat(&path)?.kind == Kind::File {
            act(scrub, &path)?;
        }
    }
    Ok(())
}

/// Whether a network configuration is bound to one machine: it gives an address or a MAC, or names the source.
pub(super) fn is_fixed(text: &[u8], source: &Source) -> bool {
    let text = String::from_utf8_lossy(text).to_ascii_lowercase();
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'));
    let mut words = lines.flat_map(|line| line.split_whitespace().chain([line]));
    let addresses: Vec<String> = source.addresses.iter().map(ToString::to_string).collect();
    let macs: Vec<String> = source.macs.iter().map(ToString::to_string).collect();
    words.any(|word| {
        [
            "address=",
            "macaddress",
            "hwaddress",
            "addresses:",
            "static",
            "gateway=",
            "hostname=",
        ]
        .iter()
        .any(|key| word.starts_with(key))
            || addresses
                .iter()
                .chain(&macs)
                .any(|of_source| word.contains(of_source.as_str()))
            || is_of_source(word, source)
    })
}

fn mail_name(scrub: &mut Scrub<'_>) -> Result<(), Error> {
    let names = scrub.source.names.clone();
    for path in [
        "etc/postfix/main.cf",
        "etc/exim4/update-exim4.conf.conf",
        "etc/ssmtp/ssmtp.conf",
        "etc/msmtprc",
    ] {
        scrub.edit(path, |text| {
            // Longest first, so that a name with its domain goes whole.
            let mut names: Vec<&String> = names.iter().collect();
            names.sort_by_key(|name| std::cmp::Reverse(name.len()));
            names.iter().fold(text.to_vec(), |text, name| {
                replace_word(&text, name.as_bytes(), NEUTRAL)
            })
        })?;
    }
    let path = Path::new("etc/mailname");
    if scrub.real(path)?.is_some() {
        scrub.edit(path, |_| b"localhost\n".to_vec())?;
        // A symlink to the host name follows that.
        if scrub.root.stat(path)?.kind != Kind::File {
            scrub.note(Change::Noticed, path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_lose_the_source_and_nothing_else() {
        let source = Source {
            names: vec!["web1".to_owned()],
            addresses: vec!["10.0.3.7".parse().expect("address")],
            macs: vec![],
        };
        let text = b"127.0.0.1 localhost\n127.0.1.1 whatever\n10.0.3.7 x\n# web1 was here\n\
            10.0.3.9 db WEB1 web1.example.org web10\n10.0.3.8 web1\n::1 ip6-localhost\n";
        let left = String::from_utf8(without_source(text, &source)).expect("utf-8");
        assert_eq!(
            left,
            "127.0.0.1 localhost\n# web1 was here\n10.0.3.9\tdb web10\n::1 ip6-localhost\n"
        );
    }

    #[test]
    fn dhcp_is_kept_and_fixed_addresses_are_seen() {
        let source = Source::default();
        assert!(!is_fixed(INTERFACES, &source));
        assert!(!is_fixed(NETWORKD, &source));
        assert!(!is_fixed(NETPLAN, &source));
        assert!(is_fixed(
            b"iface eth0 inet static\n  address 10.0.0.2/24\n",
            &source
        ));
        assert!(is_fixed(b"[Network]\nAddress=10.0.0.2/24\n", &source));
        assert!(is_fixed(b"  addresses: [10.0.0.2/24]\n", &source));
    }
}
