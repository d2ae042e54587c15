//! What tells one machine from all others. None of it may be left in a template.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{Change, Group, Operation, Scrub};
use crate::tree::{Error, Kind};

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "ssh-host-keys",
        group: Group::Identity,
        what: "remove the SSH server's host keys; they are made anew at create",
        run: ssh_host_keys,
    },
    Operation {
        name: "machine-id",
        group: Group::Identity,
        what: "empty the machine id and let D-Bus' own point to it",
        run: machine_id,
    },
    Operation {
        name: "random-seed",
        group: Group::Identity,
        what: "remove stored seeds and systemd's credential secret",
        run: |scrub| {
            scrub.remove_all(&[
                "var/lib/systemd/random-seed",
                "var/lib/urandom/random-seed",
                "var/lib/random-seed",
                "var/lib/seedrng",
                "var/lib/systemd/credential.secret",
            ])
        },
    },
    Operation {
        name: "dhcp-leases",
        group: Group::Identity,
        what: "remove DHCP leases and client ids",
        run: dhcp_leases,
    },
    Operation {
        name: "storage-names",
        group: Group::Identity,
        what: "remove host id, iSCSI and NVMe names",
        run: |scrub| {
            scrub.remove_all(&[
                "etc/hostid",
                "etc/iscsi/initiatorname.iscsi",
                "etc/nvme/hostnqn",
                "etc/nvme/hostid",
            ])
        },
    },
    Operation {
        name: "snakeoil-certificate",
        group: Group::Identity,
        what: "remove the self-signed certificate of ssl-cert and its key",
        run: snakeoil,
    },
];

fn ssh_host_keys(scrub: &mut Scrub<'_>) -> Result<(), Error> {
    let is_key = |name: &[u8]| contains(name, b"_host_") && contains(name, b"key");
    scrub.remove_in("etc/ssh", is_key)?;
    scrub.remove_in("etc/dropbear", |name| {
        name.starts_with(b"dropbear_") && name.ends_with(b"_host_key")
    })
}

/// Empty, not missing and not "uninitialized": so systemd makes a new one at first boot, and finds a place for it.
fn machine_id(scrub: &mut Scrub<'_>) -> Result<(), Error> {
    let path = Path::new("etc/machine-id");
    match scrub.root.stat(path) {
        Ok(meta) if meta.kind == Kind::File => scrub.empty(path)?,
        Ok(_) => {
            scrub.remove(path)?;
            scrub.root.write_atomic(path, b"", 0o444, (0, 0))?;
        }
        Err(Error::Missing { .. }) => {
            // Without /etc there is nothing that could read one.
            if scrub.root.exists(Path::new("etc"))? {
                scrub.root.write_atomic(path, b"", 0o444, (0, 0))?;
                scrub.note(Change::Changed, path);
            }
        }
        Err(error) => return Err(error),
    }
    // A regular file there would be taken over by systemd into the empty /etc/machine-id.
    let target = OsStr::new("/etc/machine-id");
    if let Some(path) = scrub.real("var/lib/dbus/machine-id")? {
        let is_link = scrub.root.stat(&path)?.kind == Kind::Symlink;
        if !is_link || scrub.root.readlink(&path)? != target {
            scrub.root.remove_dir_all(&path)?;
            scrub.root.symlink(target, &path)?;
            scrub.note(Change::Changed, &path);
        }
    }
    Ok(())
}

fn dhcp_leases(scrub: &mut Scrub<'_>) -> Result<(), Error> {
    for dir in [
        "var/lib/dhcp",
        "var/lib/dhclient",
        "var/lib/dhcp3",
        "var/lib/dhcpcd",
        "var/lib/dhcpcd5",
        "var/lib/dhcpv6",
        "var/lib/systemd/network",
        "run/systemd/netif",
    ] {
        scrub.clear(dir)?;
    }
    scrub.remove_in("var/lib/NetworkManager", |name| {
        name.ends_with(b".lease")
            || name.ends_with(b".lease6")
            || matches!(
                name,
                b"secret_key" | b"secret-key" | b"timestamps" | b"seen-bssids"
            )
    })?;
    scrub.remove_all(&["etc/dhcpcd.duid", "etc/dhcpcd.secret", "etc/dhclient.duid"])
}

fn snakeoil(scrub: &mut Scrub<'_>) -> Result<(), Error> {
    scrub.remove_all(&[
        "etc/ssl/certs/ssl-cert-snakeoil.pem",
        "etc/ssl/private/ssl-cert-snakeoil.key",
    ])?;
    // The link by which OpenSSL finds it, named for the hash of its subject.
    let (dir, names) = scrub.list("etc/ssl/certs")?;
    for name in names {
        let path = dir.join(&name);
        let is_link = scrub.root.stat(&path)?.kind == Kind::Symlink;
        if is_link
            && scrub
                .root
                .readlink(&path)?
                .as_bytes()
                .ends_with(b"ssl-cert-snakeoil.pem")
        {
            scrub.remove(path)?;
        }
    }
    Ok(())
}

fn contains(name: &[u8], part: &[u8]) -> bool {
    name.windows(part.len()).any(|window| window == part)
}
