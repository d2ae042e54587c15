//! Logs, spools and caches: what piled up while the container lived. Databases are reported, never touched.

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::{Change, Group, Operation, Scrub};
use crate::tree::walk::Walk;
use crate::tree::{Error, Kind};

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "journal",
        group: Group::State,
        what: "remove systemd's journal",
        run: |scrub| {
            scrub.clear("var/log/journal")?;
            scrub.clear("run/log/journal")
        },
    },
    Operation {
        name: "logs",
        group: Group::State,
        what: "empty log files and login records, remove rotated ones",
        run: logs,
    },
    Operation {
        name: "spools",
        group: Group::State,
        what: "remove mail and jobs that wait",
        run: spools,
    },
    Operation {
        name: "cron-spool",
        group: Group::State,
        what: "remove users' crontabs",
        run: |scrub| {
            scrub.clear("var/spool/cron/crontabs")?;
            scrub.remove_in("var/spool/cron", |name| {
                !matches!(name, b"crontabs" | b"atjobs" | b"atspool")
            })
        },
    },
    Operation {
        name: "temporary-files",
        group: Group::State,
        what: "remove what is in /tmp, /var/tmp and /run",
        run: temporary_files,
    },
    Operation {
        name: "crash-dumps",
        group: Group::State,
        what: "remove crash reports and core dumps",
        run: |scrub| {
            scrub.clear("var/crash")?;
            scrub.clear("var/lib/systemd/coredump")
        },
    },
    Operation {
        name: "package-caches",
        group: Group::State,
        what: "remove downloaded packages, package lists and their caches",
        run: package_caches,
    },
    Operation {
        name: "databases",
        group: Group::State,
        what: "report databases that have content; nothing of them is removed",
        run: databases,
    },
];

fn logs(scrub: &mut Scrub<'_>) -> Result<(), Error> {
    let (dir, _) = scrub.list("var/log")?;
    if dir.as_os_str().is_empty() {
        return Ok(());
    }
    let open = scrub.root.dir(&dir)?;
    let mut files = Vec::new();
    for found in Walk::new(open.as_fd())?.without_xattrs() {
        let found = found?;
        if found.entry.meta.kind == Kind::File {
            files.push(found.entry.path);
        }
    }
    for file in files {
        let is_old = file
            .file_name()
            .is_some_and(|name| is_rotated(name.as_bytes()));
        if is_old {
            scrub.remove(dir.join(file))?;
        } else {
            scrub.empty(dir.join(file))?;
        }
    }
    scrub.remove_all(&[
        "var/lib/logrotate/status",
        "var/lib/logrotate.status",
        "var/lib/sudo/lectured",
    ])
}

/// `syslog.1`, `dpkg.log.2.gz`, `messages-20260131`, `x.old`.
fn is_rotated(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name);
    let packed = [".gz", ".xz", ".bz2", ".zst", ".lz4", ".old"];
    if packed.iter().any(|end| name.ends_with(end)) {
        return true;
    }
    let digits = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let count = name.len() - digits.len();
    (digits.ends_with('.') && (1..=3).contains(&count)) || (digits.ends_with('-') && count == 8)
}

fn spools(scrub: &mut Scrub<'_>) -> Result<(), Error> {
    for dir in [
        "var/mail",
        "var/spool/mail",
        "var/spool/cron/atspool",
        "var/spool/clientmqueue",
        "var/spool/mqueue",
        "var/spool/exim4/input",
        "var/spool/exim4/msglog",
        "var/spool/exim4/db",
    ] {
        scrub.clear(dir)?;
    }
    scrub.remove_in("var/spool/cron/atjobs", |name| name != b".SEQ")?;
    for queue in [
        "active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming",
        "maildrop", "saved", "trace",
    ] {
        scrub.clear(PathBuf::from("var/spool/postfix").join(queue))?;
    }
    Ok(())
}

fn temporary_files(scrub: &mut Scrub<'_>) -> Result<(), Error> {
    scrub.clear("tmp")?;
    scrub.clear("var/tmp")?;
    // Directories in /run stay: not every init makes them anew.
    let (dir, _) = scrub.list("run")?;
    if dir.as_os_str().is_empty() {
        return Ok(());
    }
    let open = scrub.root.dir(&dir)?;
    let mut files = Vec::new();
    for found in Walk::new(open.as_fd())?.without_xattrs() {
        let entry = found?.entry;
        if !matches!(entry.meta.kind, Kind::Directory | Kind::Symlink) {
            files.push(entry.path);
        }
    }
    files
        .into_iter()
        .try_for_each(|file| scrub.remove(dir.join(file)))
}

fn package_caches(scrub: &mut Scrub<'_>) -> Result<(), Error> {
    scrub.remove_in("var/cache/apt/archives", |name| {
        !matches!(name, b"lock" | b"partial")
    })?;
    scrub.clear("var/cache/apt/archives/partial")?;
    scrub.remove_in("var/lib/apt/lists", |name| {
        !matches!(name, b"lock" | b"partial" | b"auxfiles")
    })?;
    scrub.clear("var/lib/apt/lists/partial")?;
    scrub.remove_all(&[
        "var/cache/apt/pkgcache.bin",
        "var/cache/apt/srcpkgcache.bin",
    ])?;
    for dir in [
        "var/cache/dnf",
        "var/cache/yum",
        "var/cache/apk",
        "var/cache/pacman/pkg",
    ] {
        scrub.clear(dir)?;
    }
    Ok(())
}

fn databases(scrub: &mut Scrub<'_>) -> Result<(), Error> {
    for dir in [
        "mysql",
        "postgresql",
        "mongodb",
        "redis",
        "ldap",
        "influxdb",
        "elasticsearch",
        "clickhouse",
        "couchdb",
        "etcd",
        "prometheus",
    ] {
        let (dir, names) = scrub.list(PathBuf::from("var/lib").join(dir))?;
        if !names.is_empty() {
            scrub.note(Change::Noticed, &dir);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn rotated_logs_are_told_from_live_ones() {
        for name in [
            "syslog.1",
            "dpkg.log.2.gz",
            "messages-20260131",
            "Xorg.0.log.old",
            "wtmp.1",
        ] {
            assert!(super::is_rotated(name.as_bytes()), "{name}");
        }
        for name in [
            "syslog",
            "Xorg.0.log",
            "dpkg.log",
            "postgresql-15-main.log",
            "a-2026",
        ] {
            assert!(!super::is_rotated(name.as_bytes()), "{name}");
        }
    }
}
