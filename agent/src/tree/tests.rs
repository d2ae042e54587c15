//! Trees against independent observers (find, getfattr, cp) and against hostile trees.

use std::ffi::OsStr;
use std::fs;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::copy::{Copied, How, copy_tree};
use super::remove::remove_tree;
use super::walk::{Vanished, Visit, Walk};
use super::{Error, Kind, Root};

fn run(program: &str, args: &[&str], dir: &Path) -> Vec<u8> {
    let output = Command::new(program)
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// What find and getfattr say of a tree, in one order; hardlinks by groups of names, not by numbers.
fn observed(dir: &Path) -> String {
    let format = r"%P|%y|%m|%U|%G|%s|%T@|%l|%n\0";
    let listed = run("find", &[".", "-printf", format], dir);
    let mut lines: Vec<String> = listed
        .split(|b| *b == 0)
        .filter(|line| !line.is_empty())
        // The size of a directory is the file system's own affair.
        .map(|line| {
            let text: String = line.escape_ascii().to_string();
            let fields: Vec<&str> = text.split('|').collect();
            if fields[1] == "d" {
                [&fields[..5], &fields[6..]].concat().join("|")
            } else {
                text
            }
        })
        .collect();
    lines.sort();
    let attributes = run(
        "getfattr",
        &["-R", "-h", "-d", "-m", "-", "-e", "hex", "."],
        dir,
    );
    let mut groups: Vec<String> = String::from_utf8_lossy(&attributes)
        .split("\n\n")
        .map(str::to_owned)
        .collect();
    groups.sort();
    let devices = run(
        "find",
        &[
            ".", "(", "-type", "c", "-o", "-type", "b", ")", "-exec", "stat", "-c", "%n %t %T",
            "{}", ";",
        ],
        dir,
    );
    let links = run(
        "find",
        &[".", "-type", "f", "-links", "+1", "-printf", "%i %P\n"],
        dir,
    );
    let mut by_inode = std::collections::BTreeMap::<String, Vec<String>>::new();
    for line in String::from_utf8_lossy(&links).lines() {
        let (inode, name) = line.split_once(' ').expect("inode and name");
        by_inode
            .entry(inode.to_owned())
            .or_default()
            .push(name.to_owned());
    }
    let mut linked: Vec<Vec<String>> = by_inode
        .into_values()
        .map(|mut names| {
            names.sort();
            names
        })
        .collect();
    linked.sort();
    let mut devices: Vec<String> = String::from_utf8_lossy(&devices)
        .lines()
        .map(str::to_owned)
        .collect();
    devices.sort();
    format!(
        "{}\n{}\n{devices:?}\n{linked:?}",
        lines.join("\n"),
        groups.join("\n\n")
    )
}

/// A tree with one of everything.
fn rich_tree(dir: &Path) {
    let script = r#"
        mkdir -p etc/deep usr/bin dev empty 'name with | and
newline' setgid
        printf content > etc/file
        printf other > 'name with | and
newline/x'
        ln etc/file etc/deep/hard
        ln etc/file hard2
        ln -s ../etc/file etc/symlink
        ln -s /etc/shadow etc/absolute
        ln -s nowhere dangling
        mknod dev/null c 1 3; mknod dev/sda b 8 0; mkfifo dev/fifo; chmod 640 dev/fifo
        ln dev/null dev/null2
        printf suid > usr/bin/suid; chown 33:44 usr/bin/suid; chmod 6755 usr/bin/suid
        printf cap > usr/bin/cap; setcap cap_net_raw+ep usr/bin/cap
        chown 100000:65534 empty; chmod 1777 empty; chmod 2750 setgid; printf y > setgid/inner
        setfattr -n user.tally -v 'a value' etc/file
        setfattr -n trusted.mark -v 0x00ff10 etc
        setfattr -h -n trusted.onlink -v yes etc/symlink
        setfacl -m u:1234:rwx,g:55:r etc/deep/hard
        setfacl -d -m u:1234:rw etc/deep
        chmod 000 'name with | and
newline/x'
        truncate -s 8M sparse
        printf middle | dd of=sparse bs=1 seek=3000000 conv=notrunc status=none
        dd if=/dev/urandom of=large bs=1M count=3 status=none
        truncate -s 5M holes_only
        touch -h -d '2001-02-03 04:05:06.123456789' etc/symlink dangling
        touch -d '1969-12-31 23:59:58.5' usr/bin/cap
        touch -d '2010-10-10 10:10:10.000000001' etc/deep etc usr/bin dev empty .
    "#;
    run("sh", &["-ec", script], dir);
    fs::write(dir.join(OsStr::from_bytes(b"\xff\xfenot-utf8")), b"bytes").expect("write");
    fs::write(dir.join("n".repeat(255)), b"long name").expect("write");
    run("touch", &["-d", "2010-10-10 10:10:10.000000001", "."], dir);
}

fn copy(from: &Path, to: &Path, how: How) -> Result<Copied, Error> {
    let (source, dest) = (Root::open(from)?, Root::open(to)?);
    copy_tree(
        source.as_fd(),
        dest.as_fd(),
        how,
        Vanished::Refuse,
        &mut |_| ControlFlow::Continue(()),
    )
}

#[test]
fn a_copy_is_the_same_by_independent_observers() {
    let temp = tempfile::tempdir().expect("tempdir");
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    fs::create_dir(&from).expect("mkdir");
    fs::create_dir(&to).expect("mkdir");
    rich_tree(&from);
    let before = observed(&from);
    let copied = copy(&from, &to, How::Copy).expect("copy");
    assert_eq!(observed(&from), before, "the source was changed");
    assert_eq!(observed(&to), before);
    assert!(before.contains("security.capability") && before.contains("posix_acl_default"));
    let entries = run("find", &[".", "-printf", "x"], &from).len() as u64;
    assert_eq!(copied.entries, entries);
    for name in ["sparse", "holes_only"] {
        let (a, b) = (fs::metadata(from.join(name)), fs::metadata(to.join(name)));
        let (a, b) = (a.expect("source"), b.expect("copy"));
        assert_eq!(
            (a.size(), a.blocks()),
            (b.size(), b.blocks()),
            "holes of {name}"
        );
    }
    assert!(fs::metadata(to.join("sparse")).expect("stat").blocks() < 100);
    run(
        "diff",
        &["-r", "--no-dereference", "etc", "../to/etc"],
        &from,
    );
    run("cmp", &["large", "../to/large"], &from);
    run("cmp", &["sparse", "../to/sparse"], &from);
}
