//! Debian by `debootstrap`, and what makes its result boot quickly and quietly in a container.
//!
//! The archive is always checked against a keyring of the host. What is changed afterwards is changed from
//! outside, beneath the new tree; nothing of it is run by us.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tallybook_events::step::{FailureClass, StepFailure};

use super::apt::{self, Source};
use super::{Mirror, Package, Release};
use crate::lxc::printed;
use crate::step::{Context, Ended, Program, fail};
use crate::tree::Root;

/// What every guest has beside `minbase`: an init, D-Bus for logind and `systemctl`, a network that asks DHCP,
/// an SSH server, and certificates for https.
const PACKAGES: [&str; 9] = [
    "systemd-sysv",
    "dbus",
    "openssh-server",
    "iproute2",
    "iputils-ping",
    "isc-dhcp-client",
    "ifupdown",
    "netbase",
    "ca-certificates",
];
/// Where packages come from when the host itself names no archive of the release.
const PUBLIC_MIRROR: &str = "http://deb.debian.org/debian";
/// And its security updates.
const PUBLIC_SECURITY: &str = "http://deb.debian.org/debian-security";
/// The keyring of the package `debian-archive-keyring`.
const KEYRING: &str = "usr/share/keyrings/debian-archive-keyring.gpg";
/// A whole bootstrap over a slow line.
const TIMEOUT: Duration = Duration::from_secs(3600);
/// Less free space than this can't hold one.
const FREE_BYTES_MIN: u64 = 700 * 1024 * 1024;
/// Longest part of debootstrap's log that is read.
const LOG_LEN_MAX: usize = 8 * 1024 * 1024;

/// Units that can't work in a container, or that only cost it time: device management and consoles belong to
/// the host.
const MASKED: [&str; 12] = [
    "console-getty.service",
    "dev-hugepages.mount",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-journald-audit.socket",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udevd.service",
];

/// What is asked for.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The release.
    pub release: &'a Release,
    /// The mirror; none means the host's own.
    pub mirror: Option<&'a Mirror>,
    /// More packages.
    pub packages: &'a [Package],
    /// A directory that keeps downloaded packages.
    pub cache_dir: Option<&'a Path>,
}

/// The archives a guest of this release uses: the mirror asked for, else the host's, else the public one.
fn archives(wanted: &Wanted<'_>, etc_apt: &Path) -> Vec<Source> {
    let release = wanted.release.as_str();
    let source = |uri: &str, suite: String| Source {
        uri: uri.trim_end_matches('/').to_owned(),
        suite,
        components: vec!["main".to_owned()],
        signed_by: None,
    };
    let mut archives = apt::sources_of(etc_apt, release);
    if let Some(mirror) = wanted.mirror {
        archives.retain(|archive| archive.suite != release);
        archives.insert(0, source(mirror.as_str(), release.to_owned()));
    } else if !archives.iter().any(|archive| archive.suite == release) {
        archives = vec![source(PUBLIC_MIRROR, release.to_owned())];
        if release != "sid" && release != "unstable" {
            archives.push(source(PUBLIC_MIRROR, format!("{release}-updates")));
            archives.push(source(PUBLIC_SECURITY, format!("{release}-security")));
        }
    }
    archives
}

/// Makes the tree at `rootfs`, which must not be there yet.
///
/// # Errors
/// When debootstrap is missing, knows no such release, can't reach the mirror or check it, or fails otherwise.
pub fn bootstrap(
    context: &mut Context<'_>,
    wanted: &Wanted<'_>,
    rootfs: &Path,
    lock: &Path,
) -> Result<(), StepFailure> {
    let host = context.layout.root.clone();
    let etc_apt = host.join("etc/apt");
    require_debootstrap(context, &host, wanted.release)?;
    require_space(context)?;
    let archives = archives(wanted, &etc_apt);
    let main = archives
        .iter()
        .find(|archive| archive.suite == wanted.release.as_str())
        .ok_or_else(|| fail(FailureClass::Unknown, "no archive to bootstrap from"))?;
    let keyring = keyring(&host, main)?;
    let program = command(wanted, main, &keyring, rootfs, lock);
    context
        .link
        .progress(&format!("debootstrap from {}", main.uri), 0, 0);
    let ended = context.link.run(&program)?;
    if ended.exit != Some(0) {
        return Err(explain(&ended, rootfs, wanted.release, &main.uri));
    }
    let settings = transport_settings(context);
    finish(rootfs, &archives, &settings)
}

/// debootstrap under flock(1): the lock is inherited by all it starts, so that what an agent that died left
/// running is waited for, and never shares the tree with a second one.
fn command(
    wanted: &Wanted<'_>,
    main: &Source,
    keyring: &Path,
    rootfs: &Path,
    lock: &Path,
) -> Program {
    let mut packages = PACKAGES.to_vec();
    packages.extend(wanted.packages.iter().map(Package::as_str));
    let mut argv = vec![
        "flock".to_owned(),
        lock.display().to_string(),
        "debootstrap".to_owned(),
        "--variant=minbase".to_owned(),
        "--force-check-gpg".to_owned(),
        format!("--arch={}", super::arch()),
        format!("--keyring={}", keyring.display()),
        format!("--include={}", packages.join(",")),
    ];
    if let Some(dir) = wanted
        .cache_dir
        .filter(|dir| dir.is_absolute() && dir.is_dir())
    {
        argv.push(format!("--cache-dir={}", dir.display()));
    }
    argv.extend([
        wanted.release.as_str().to_owned(),
        rootfs.display().to_string(),
        main.uri.clone(),
    ]);
    Program::new(argv)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .timeout(TIMEOUT)
        .watch(|line| line.strip_prefix("I: ").map(str::to_owned))
        .lasting()
}

fn require_debootstrap(
    context: &mut Context<'_>,
    host: &Path,
    release: &Release,
) -> Result<(), StepFailure> {
    if !host.join("usr/sbin/debootstrap").exists() {
        return Err(StepFailure {
            hint: Some("apt-get install debootstrap".to_owned()),
            ..fail(
                FailureClass::Missing,
                format!("debootstrap is not installed on {}", context.host),
            )
        });
    }
    if !host
        .join("usr/share/debootstrap/scripts")
        .join(release.as_str())
        .exists()
    {
        return Err(unknown_release(release));
    }
    Ok(())
}

fn unknown_release(release: &Release) -> StepFailure {
    StepFailure {
        hint: Some(
            "check the release's name; a newer debootstrap may know it (ls /usr/share/debootstrap/scripts)"
                .to_owned(),
        ),
        ..fail(
            FailureClass::Missing,
            format!("debootstrap knows no release {:?}", release.as_str()),
        )
    }
}

fn require_space(context: &Context<'_>) -> Result<(), StepFailure> {
    let own = context.layout.own();
    let free = rustix::fs::statvfs(&own)
        .map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
        .map_err(|e| {
            fail(
                FailureClass::Other,
                format!("looking at {}: {e}", own.display()),
            )
        })?;
    if free < FREE_BYTES_MIN {
        return Err(StepFailure {
            hint: Some(format!(
                "free space on the file system of {}",
                own.display()
            )),
            ..fail(
                FailureClass::DiskFull,
                format!(
                    "a base system needs {} MiB, and {} MiB are free",
                    FREE_BYTES_MIN >> 20,
                    free >> 20
                ),
            )
        });
    }
    Ok(())
}

fn keyring(host: &Path, main: &Source) -> Result<PathBuf, StepFailure> {
    let path = main.signed_by.clone().unwrap_or_else(|| host.join(KEYRING));
    if path.exists() {
        return Ok(path);
    }
    Err(StepFailure {
        hint: Some("apt-get install debian-archive-keyring".to_owned()),
        ..fail(
            FailureClass::Missing,
            format!(
                "the keyring {} that the archive is checked against is missing",
                path.display()
            ),
        )
    })
}

/// The lines of `apt-config dump` that matter to a guest; none where there is no apt.
fn transport_settings(context: &mut Context<'_>) -> String {
    let dump = Program::new(["apt-config", "dump"]).timeout(Duration::from_secs(30));
    match context.link.run(&dump) {
        Ok(ended) if ended.exit == Some(0) => {
            apt::transport_settings(&String::from_utf8_lossy(&ended.stdout))
        }
        // A host may have debootstrap without apt; its guests then have apt's defaults.
        Ok(_) | Err(_) => String::new(),
    }
}

/// What went wrong, from what debootstrap printed and the end of its log.
fn explain(ended: &Ended, rootfs: &Path, release: &Release, mirror: &str) -> StepFailure {
    let log = Root::open(rootfs)
        .and_then(|root| root.read(Path::new("debootstrap/debootstrap.log"), LOG_LEN_MAX))
        .unwrap_or_default();
    let log = String::from_utf8_lossy(&log).into_owned();
    let said = printed(ended);
    let both = format!("{said}\n{log}");
    if both.contains("No space left on device") || both.contains("Disk quota exceeded") {
        return StepFailure {
            hint: Some(format!(
                "free space on the file system of {}",
                rootfs.display()
            )),
            ..fail(
                FailureClass::DiskFull,
                "the disk was full before the base system was whole",
            )
        };
    }
    if both.contains("No such script") {
        return unknown_release(release);
    }
    let unreachable = [
        "Failed getting release file",
        "Couldn't download",
        "Failed to retrieve",
        "unable to resolve",
    ];
    if unreachable.iter().any(|part| both.contains(part)) {
        return StepFailure {
            hint: Some(format!(
                "try on the host: wget -q -O - {mirror}/dists/{}/Release",
                release.as_str()
            )),
            ..fail(
                FailureClass::Command,
                format!(
                    "release {} can't be had from {mirror}: {}",
                    release.as_str(),
                    errors_of(&said)
                ),
            )
        };
    }
    if both.contains("Invalid Release signature") || both.contains("Release signed by unknown key")
    {
        return fail(
            FailureClass::Verification,
            format!(
                "the signature of release {} at {mirror} is not good: {}",
                release.as_str(),
                errors_of(&said)
            ),
        );
    }
    let tail: Vec<&str> = log.lines().rev().take(3).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    fail(
        FailureClass::Command,
        format!(
            "debootstrap failed: {}; its log ends: {}",
            errors_of(&said),
            tail.join(" | ")
        ),
    )
}

/// The errors and warnings among what debootstrap printed.
fn errors_of(said: &str) -> String {
    let errors: Vec<&str> = said
        .split(" | ")
        .filter(|line| line.starts_with("E: ") || line.starts_with("W: "))
        .collect();
    let last = errors.len().saturating_sub(3);
    if errors.is_empty() {
        said.chars().take(300).collect()
    } else {
        errors[last..].join(" | ")
    }
}

/// What a guest is to find, written beneath its new tree.
fn finish(rootfs: &Path, archives: &[Source], settings: &str) -> Result<(), StepFailure> {
    let other = |e: crate::tree::Error| e.failure(rootfs);
    let root = Root::open(rootfs).map_err(other)?;
    let write = |path: &str, text: &str| {
        root.write_atomic(Path::new(path), text.as_bytes(), 0o644, (0, 0))
            .map_err(other)
    };
    write(
        "etc/network/interfaces",
        "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n",
    )?;
    let mut sources = String::new();
    for archive in archives {
        let mut archive = archive.clone();
        if let Some(keyring) = &archive.signed_by {
            let inside = keyring.strip_prefix("/").unwrap_or(keyring);
            if !root.exists(inside).unwrap_or(false) {
                archive.signed_by = None;
            }
        }
        sources.push_str(&archive.line());
    }
    write("etc/apt/sources.list", &sources)?;
    if !settings.is_empty() {
        write("etc/apt/apt.conf.d/90host", settings)?;
    }
    // A base belongs to no container yet: each gets its own identity when it is configured.
    write("etc/machine-id", "")?;
    for path in [
        "etc/hostname",
        "etc/resolv.conf",
        "var/lib/dbus/machine-id",
        "var/log/bootstrap.log",
    ] {
        root.remove_file(Path::new(path)).map_err(other)?;
    }
    remove_matching(&root, "etc/ssh", |name| {
        name.starts_with("ssh_host_") && name.contains("_key")
    })?;
    remove_matching(&root, "var/cache/apt/archives", |name| {
        name.ends_with(".deb")
    })?;
    remove_matching(&root, "var/cache/apt", |name| {
        name.ends_with("pkgcache.bin")
    })?;
    remove_matching(&root, "var/lib/apt/lists", |name| name.contains("_dists_"))?;
    mask_units(&root)
}

fn remove_matching(root: &Root, dir: &str, matches: fn(&str) -> bool) -> Result<(), StepFailure> {
    let other = |e: crate::tree::Error| e.failure(root.label());
    let dir = Path::new(dir);
    if !root.exists(dir).map_err(other)? {
        return Ok(());
    }
    for name in root.list(dir).map_err(other)? {
        if name.to_str().is_some_and(matches) {
            root.remove_file(&dir.join(name)).map_err(other)?;
        }
    }
    Ok(())
}

fn mask_units(root: &Root) -> Result<(), StepFailure> {
    let other = |e: crate::tree::Error| e.failure(root.label());
    let units = Path::new("etc/systemd/system");
    if !root.exists(units).map_err(other)? {
        return Ok(());
    }
    for unit in MASKED {
        let mask = units.join(unit);
        root.remove_file(&mask).map_err(other)?;
        root.symlink(OsStr::new("/dev/null"), &mask)
            .map_err(other)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn release() -> Release {
        Release::try_from("bookworm".to_owned()).unwrap()
    }

    fn wanted<'a>(release: &'a Release, mirror: Option<&'a Mirror>) -> Wanted<'a> {
        Wanted {
            release,
            mirror,
            packages: &[],
            cache_dir: None,
        }
    }

    #[test]
    fn the_mirror_asked_for_replaces_the_hosts_main_archive_only() {
        let etc = tempfile::tempdir().unwrap();
        let release = release();
        let lines = |mirror: Option<&Mirror>| {
            archives(&wanted(&release, mirror), etc.path())
                .iter()
                .map(|source| format!("{} {}", source.uri, source.suite))
                .collect::<Vec<_>>()
        };
        assert_eq!(lines(None)[0], "http://deb.debian.org/debian bookworm");
        assert_eq!(lines(None).len(), 3);
        fs::write(
            etc.path().join("sources.list"),
            "deb http://near.test/debian bookworm main\ndeb http://near.test/security bookworm-security main\n",
        )
        .unwrap();
        assert_eq!(
            lines(None),
            [
                "http://near.test/debian bookworm",
                "http://near.test/security bookworm-security"
            ]
        );
        let mirror = Mirror::try_from("http://asked.test/debian/".to_owned()).unwrap();
        assert_eq!(
            lines(Some(&mirror)),
            [
                "http://asked.test/debian bookworm",
                "http://near.test/security bookworm-security"
            ]
        );
    }

    #[test]
    fn failures_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let class = |text: &str| {
            let ended = Ended {
                exit: Some(1),
                stdout: text.as_bytes().to_vec(),
                stderr: Vec::new(),
            };
            explain(&ended, dir.path(), &release(), "http://near.test/debian")
        };
        let failure = class("I: Checking\nE: Failed getting release file http://near.test/x\n");
        assert_eq!(failure.class, FailureClass::Command);
        assert!(
            failure
                .message
                .contains("can't be had from http://near.test"),
            "{}",
            failure.message
        );
        assert_eq!(
            class("E: No such script: /x/foo\n").class,
            FailureClass::Missing
        );
        assert_eq!(
            class("E: Invalid Release signature (key id 12)\n").class,
            FailureClass::Verification
        );
        fs::create_dir(dir.path().join("debootstrap")).unwrap();
        fs::write(
            dir.path().join("debootstrap/debootstrap.log"),
            "dpkg: error: cannot copy: No space left on device\n",
        )
        .unwrap();
        assert_eq!(
            class("W: Failure while installing base packages.\n").class,
            FailureClass::DiskFull
        );
    }

    #[test]
    fn the_result_is_quiet_and_belongs_to_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path();
        for sub in [
            "etc/network",
            "etc/apt/apt.conf.d",
            "etc/ssh",
            "etc/systemd/system",
            "var/lib/dbus",
            "var/lib/apt/lists",
        ] {
            fs::create_dir_all(rootfs.join(sub)).unwrap();
        }
        for file in [
            "etc/ssh/ssh_host_rsa_key",
            "etc/ssh/ssh_host_rsa_key.pub",
            "etc/ssh/sshd_config",
            "etc/hostname",
            "etc/resolv.conf",
            "etc/machine-id",
            "var/lib/apt/lists/x_dists_y",
        ] {
            fs::write(rootfs.join(file), "x").unwrap();
        }
        let sources = archives(&wanted(&release(), None), Path::new("/nonexistent"));
        finish(rootfs, &sources, "Acquire::Retries \"3\";\n").unwrap();
        finish(rootfs, &sources, "Acquire::Retries \"3\";\n").unwrap();
        for gone in [
            "etc/ssh/ssh_host_rsa_key",
            "etc/ssh/ssh_host_rsa_key.pub",
            "etc/hostname",
            "etc/resolv.conf",
            "var/lib/apt/lists/x_dists_y",
        ] {
            assert!(!rootfs.join(gone).exists(), "{gone}");
        }
        assert!(rootfs.join("etc/ssh/sshd_config").exists());
        assert_eq!(fs::read(rootfs.join("etc/machine-id")).unwrap(), b"");
        assert_eq!(
            fs::read_link(rootfs.join("etc/systemd/system/systemd-udevd.service")).unwrap(),
            Path::new("/dev/null")
        );
        assert!(
            fs::read_to_string(rootfs.join("etc/apt/sources.list"))
                .unwrap()
                .starts_with("deb http://deb.debian.org/debian bookworm main\n")
        );
    }
}
