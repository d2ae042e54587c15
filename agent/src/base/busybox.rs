//! A root file system of the host's static busybox: boots in a fraction of a second, has DHCP and a shell.
//!
//! Only a statically linked binary is taken; a dynamic one would not start without the host's libraries.

use std::ffi::OsStr;
use std::fs;
use std::path::{Component, Path, PathBuf};

use tallybook_events::step::{FailureClass, StepFailure};

use crate::step::{Context, Program, fail, io_failure};
use crate::tree::Root;

const DIRECTORIES: [&str; 14] = [
    "bin",
    "dev",
    "etc/init.d",
    "proc",
    "root",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr/bin",
    "usr/sbin",
    "usr/share/udhcpc",
    "var/lib",
    "var/log",
];

/// Programs of the init that its own list may not place where the kernel and LXC look for them.
const NEEDED: [&str; 3] = ["sbin/init", "bin/sh", "sbin/udhcpc"];

/// `udhcpc` stays in the foreground as a child of init, so that it is restarted and nothing is waited for.
const INITTAB: &str = "::sysinit:/etc/init.d/rcS
::respawn:/sbin/udhcpc -f -R -i eth0 -t 5 -T 1 -A 2 -s /usr/share/udhcpc/default.script
::ctrlaltdel:/sbin/poweroff
::shutdown:/bin/sync
";

const RC_S: &str = "#!/bin/sh
export PATH=/sbin:/bin:/usr/sbin:/usr/bin
[ -s /etc/hostname ] && hostname -F /etc/hostname
mkdir -p /run/lock
ifconfig lo 127.0.0.1 up
ifconfig eth0 up
for start in /etc/init.d/S*; do
    [ -x \"$start\" ] && \"$start\" start
done
exit 0
";

const DHCP_SCRIPT: &str = "#!/bin/sh
# Applies what the DHCP server says to the interface.
case \"$1\" in
deconfig)
    ip link set dev \"$interface\" up
    ;;
bound|renew)
    ip addr replace \"$ip/${mask:-24}\" ${broadcast:+broadcast \"$broadcast\"} dev \"$interface\"
    for old in $(ip -4 -o addr show dev \"$interface\" | awk '{ print $4 }'); do
        [ \"${old%/*}\" = \"$ip\" ] || ip addr del \"$old\" dev \"$interface\"
    done
    for gateway in $router; do
        ip route replace default via \"$gateway\" dev \"$interface\"
        break
    done
    {
        [ -n \"$domain\" ] && echo \"search $domain\"
        for server in $dns; do
            echo \"nameserver $server\"
        done
    } > /etc/resolv.conf.new && mv /etc/resolv.conf.new /etc/resolv.conf
    if [ -n \"$hostname\" ] && [ ! -s /etc/hostname ]; then
        hostname \"$hostname\"
    fi
    ;;
esac
exit 0
";

/// Makes the tree at `rootfs`, which must be an empty directory.
///
/// # Errors
/// When the host has no static busybox, or the tree can't be written.
pub fn bootstrap(context: &mut Context<'_>, rootfs: &Path) -> Result<(), StepFailure> {
    let other = |e: crate::tree::Error| e.failure(rootfs);
    let binary = host_binary(&context.layout.root, context.host.as_str())?;
    let listed = context.run(&Program::new(["busybox", "--list-full"]))?;
    let root = Root::open(rootfs).map_err(other)?;
    for dir in DIRECTORIES {
        root.create_dir_all(Path::new(dir), 0o755).map_err(other)?;
    }
    root.chmod(Path::new("tmp"), 0o1777).map_err(other)?;
    root.chmod(Path::new("root"), 0o700).map_err(other)?;
    let mut files: Vec<(&str, u32, &[u8])> = vec![
        ("bin/busybox", 0o755, &binary),
        ("etc/inittab", 0o644, INITTAB.as_bytes()),
        ("etc/init.d/rcS", 0o755, RC_S.as_bytes()),
        (
            "usr/share/udhcpc/default.script",
            0o755,
            DHCP_SCRIPT.as_bytes(),
        ),
        (
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
        ),
        (
            "etc/shadow",
            0o640,
            b"root:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n",
        ),
        ("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n"),
        ("etc/hosts", 0o644, b"127.0.0.1 localhost\n"),
        ("etc/machine-id", 0o644, b""),
    ];
    // The init comes last: without it nothing takes the tree for a whole one.
    for (path, mode, bytes) in files.drain(..) {
        root.write_atomic(Path::new(path), bytes, mode, (0, 0))
            .map_err(other)?;
    }
    let list = String::from_utf8_lossy(&listed.stdout).into_owned();
    for link in applets(&list) {
        if let Some(parent) = link.parent() {
            root.create_dir_all(parent, 0o755).map_err(other)?;
        }
        if !root.exists(&link).map_err(other)? {
            root.symlink(OsStr::new("/bin/busybox"), &link)
                .map_err(other)?;
        }
    }
    Ok(())
}

/// The paths of the programs busybox can be, from its own list, and those that must be there.
fn applets(list: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = list
        .lines()
        .chain(NEEDED)
        .map(|line| PathBuf::from(line.trim()))
        .filter(|path| {
            path.components().count() >= 2
                && path
                    .components()
                    .all(|part| matches!(part, Component::Normal(_)))
                && path != Path::new("bin/busybox")
        })
        .collect();
    paths.sort();
    paths.dedup();
    paths
}

fn host_binary(host: &Path, name: &str) -> Result<Vec<u8>, StepFailure> {
    let hint = Some("apt-get install busybox-static".to_owned());
    let path = ["bin/busybox", "usr/bin/busybox"]
        .iter()
        .map(|path| host.join(path))
        .find(|path| path.is_file())
        .ok_or_else(|| StepFailure {
            hint: hint.clone(),
            ..fail(
                FailureClass::Missing,
                format!("busybox is not installed on {name}"),
            )
        })?;
    let bytes = fs::read(&path).map_err(|e| io_failure("reading", &path, &e))?;
    if !is_static(&bytes) {
        return Err(StepFailure {
            hint,
            ..fail(
                FailureClass::Host,
                format!(
                    "{} is not statically linked and would not start in a container",
                    path.display()
                ),
            )
        });
    }
    Ok(bytes)
}

/// Whether a 64-bit little-endian ELF file asks for no interpreter (ELF-64 object file format, `PT_INTERP`).
fn is_static(bytes: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, len: usize| -> Option<u64> {
        let part = bytes.get(at..at.checked_add(len)?)?;
        Some(
            part.iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    if bytes.get(..6) != Some(&[0x7f, b'E', b'L', b'F', 2, 1]) {
        return false;
    }
    let (Some(offset), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2))
    else {
        return false;
    };
    (0..count).all(|index| {
        let at = usize::try_from(offset.saturating_add(index * size)).unwrap_or(usize::MAX);
        number(at, 4).is_some_and(|kind| kind != u64::from(PT_INTERP))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_that_asks_for_an_interpreter_is_refused() {
        let elf = |kind: u32| {
            let mut bytes = vec![0; 64 + 56];
            bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
            bytes[32] = 64;
            bytes[54] = 56;
            bytes[56] = 1;
            bytes[64..68].copy_from_slice(&kind.to_le_bytes());
            bytes
        };
        assert!(is_static(&elf(1)));
        assert!(!is_static(&elf(3)));
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(&elf(1)[..66]));
    }

    #[test]
    fn only_plain_paths_of_the_list_are_linked() {
        let paths = applets("bin/ls\n../etc/x\n/bin/abs\nusr/bin/awk\nbin/busybox\nlinuxrc\n");
        let paths: Vec<&str> = paths.iter().filter_map(|path| path.to_str()).collect();
        assert_eq!(
            paths,
            [
                "bin/ls",
                "bin/sh",
                "sbin/init",
                "sbin/udhcpc",
                "usr/bin/awk"
            ]
        );
    }
}
