//! Trees against independent observers (find, getfattr, cp) and against hostile trees.

use std::ffi::OsStr;
use std::fs;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Mode, OFlags};

use super::copy::{Copied, How, Limits, copy_tree, copy_within};
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

#[test]
fn a_copy_refuses_a_destination_with_content_and_stops_when_told() {
    let temp = tempfile::tempdir().expect("tempdir");
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    fs::create_dir_all(&from).expect("mkdir");
    fs::create_dir(&to).expect("mkdir");
    for n in 0..600 {
        fs::write(from.join(format!("f{n}")), "x").expect("write");
    }
    let (source, dest) = (
        Root::open(&from).expect("open"),
        Root::open(&to).expect("open"),
    );
    let stopped = copy_tree(
        source.as_fd(),
        dest.as_fd(),
        How::Copy,
        Vanished::Refuse,
        &mut |_| ControlFlow::Break(()),
    );
    assert!(matches!(stopped, Err(Error::Stopped)), "{stopped:?}");
    let again = copy(&from, &to, How::Copy);
    assert!(matches!(again, Err(Error::Io { .. })), "{again:?}");
    super::remove::empty(dest.as_fd()).expect("empty");
    copy(&from, &to, How::Copy).expect("from scratch");
    assert_eq!(observed(&from), observed(&to));
}

#[test]
fn a_reflink_where_there_is_none_is_an_error_that_says_so() {
    let temp = tempfile::tempdir_in("/dev/shm").expect("tmpfs has no reflinks");
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    fs::create_dir_all(&from).expect("mkdir");
    fs::create_dir(&to).expect("mkdir");
    fs::write(from.join("f"), "content").expect("write");
    let error = copy(&from, &to, How::Reflink).expect_err("tmpfs");
    assert!(
        matches!(&error, Error::Reflink { path, .. } if path == Path::new("f")),
        "{error:?}"
    );
    assert!(error.failure(&from).hint.is_some());
}

#[test]
fn five_thousand_levels_are_walked_copied_and_removed() {
    let temp = tempfile::tempdir().expect("tempdir");
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    fs::create_dir(&from).expect("mkdir");
    fs::create_dir(&to).expect("mkdir");
    let root = Root::open(&from).expect("open");
    let deep: PathBuf = std::iter::repeat_n("d", 5000).collect();
    root.create_dir_all(&deep, 0o750).expect("make");
    root.write_atomic(&deep.join("bottom"), b"down here", 0o600, (0, 0))
        .expect("write");
    // A thread with little stack: recursion would need more.
    let (from_copy, to_copy) = (from.clone(), to.clone());
    std::thread::Builder::new()
        .stack_size(128 * 1024)
        .spawn(move || copy(&from_copy, &to_copy, How::Copy).expect("copy"))
        .expect("spawn")
        .join()
        .expect("join");
    let copied = Root::open(&to).expect("open");
    assert_eq!(
        copied.read(&deep.join("bottom"), 100).expect("read"),
        b"down here"
    );
    assert_eq!(copied.stat(&deep).expect("stat").mode, 0o750);
    assert_eq!(Walk::new(copied.as_fd()).expect("walk").count(), 5002);
    assert!(root.remove_dir_all(Path::new("d")).expect("remove"));
    assert_eq!(
        root.list(Path::new("")).expect("list"),
        Vec::<std::ffi::OsString>::new()
    );
    run("rm", &["-rf", "to"], temp.path());
}

#[test]
fn nothing_reaches_outside_through_a_symlink() {
    let temp = tempfile::tempdir().expect("tempdir");
    let outside = temp.path().join("outside");
    fs::create_dir(&outside).expect("mkdir");
    fs::write(outside.join("secret"), "keep").expect("write");
    let tree = temp.path().join("tree");
    fs::create_dir(&tree).expect("mkdir");
    symlink(&outside, tree.join("link")).expect("symlink");
    symlink(outside.join("secret"), tree.join("file")).expect("symlink");
    let root = Root::open(&tree).expect("open");
    let through = Path::new("link/secret");
    let refused = |result: Result<(), Error>| {
        let error = result.expect_err("must not follow");
        assert!(matches!(error, Error::Symlink { .. }), "{error:?}");
    };
    refused(root.read(through, 10).map(drop));
    refused(root.read(Path::new("file"), 10).map(drop));
    refused(root.truncate(Path::new("file")));
    refused(root.truncate(through));
    refused(root.write_atomic(through, b"x", 0o644, (0, 0)));
    refused(root.remove_file(through).map(drop));
    refused(root.remove_dir_all(through).map(drop));
    refused(root.create_dir_all(Path::new("link/new"), 0o755));
    refused(root.chown(through, 1, 1));
    refused(root.chmod(through, 0o777));
    refused(root.stat(through).map(drop));
    refused(root.list(Path::new("link")).map(drop));
    refused(root.symlink(OsStr::new("x"), Path::new("link/s")));
    for path in ["../outside/secret", "/etc/passwd", "a/../../x", ""] {
        let error = root.read(Path::new(path), 10).expect_err(path);
        assert!(matches!(error, Error::Path { .. }), "{path}: {error:?}");
    }
    // On the name itself it acts on the symlink: the target stays as it was.
    root.write_atomic(Path::new("file"), b"mine", 0o644, (0, 0))
        .expect("replaces the symlink");
    assert!(
        root.remove_dir_all(Path::new("link"))
            .expect("removes the symlink")
    );
    assert_eq!(
        fs::read_to_string(outside.join("secret")).expect("read"),
        "keep"
    );
    assert_eq!(fs::metadata(outside.join("secret")).expect("stat").uid(), 0);
    assert_eq!(fs::read_dir(&outside).expect("list").count(), 1);
}

#[test]
fn a_directory_swapped_for_a_symlink_meanwhile_never_leads_outside() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let temp = tempfile::tempdir().expect("tempdir");
    let outside = temp.path().join("outside");
    fs::create_dir(&outside).expect("mkdir");
    fs::write(outside.join("f"), "outside").expect("write");
    let tree = temp.path().join("tree");
    fs::create_dir_all(tree.join("dir")).expect("mkdir");
    fs::write(tree.join("dir/f"), "inside").expect("write");
    symlink(&outside, tree.join("other")).expect("symlink");
    let root = Root::open(&tree).expect("open");
    let stop = AtomicBool::new(false);
    let (mut inside, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let dir = fs::File::open(&tree).expect("open");
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(
                    &dir,
                    "dir",
                    &dir,
                    "other",
                    rustix::fs::RenameFlags::EXCHANGE,
                )
                .expect("swap");
            }
        });
        for _ in 0..20_000 {
            match root.read(Path::new("dir/f"), 100) {
                Ok(bytes) => {
                    assert_eq!(bytes, b"inside");
                    inside += 1;
                }
                Err(Error::Symlink { .. }) => refused += 1,
                // Found as one thing, opened as the other.
                Err(Error::Type { .. } | Error::Missing { .. } | Error::Io { .. }) => {}
                Err(other) => panic!("{other:?}"),
            }
            let walked = Walk::new(root.as_fd()).expect("walk");
            for found in walked.flatten() {
                assert_ne!(found.entry.path, Path::new("other/outside"));
                if found.entry.meta.kind == Kind::File
                    && let Ok(mut file) = found.open()
                {
                    let mut text = String::new();
                    std::io::Read::read_to_string(&mut file, &mut text).expect("read");
                    assert_eq!(text, "inside");
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(
        inside > 0 && refused > 0,
        "the race was never run: {inside} {refused}"
    );
}

#[test]
fn a_mount_in_the_tree_stops_everything_and_is_named() {
    let temp = tempfile::tempdir().expect("tempdir");
    fs::create_dir_all(temp.path().join("tree/a")).expect("mkdir");
    fs::create_dir_all(temp.path().join("tree/zz/mounted")).expect("mkdir");
    fs::write(temp.path().join("tree/a/file"), "x").expect("write");
    let point = temp.path().join("tree/zz/mounted");
    // A bind mount of the same file system: its device number gives nothing away.
    run(
        "mount",
        &["--bind", "/usr", point.to_str().expect("utf-8")],
        temp.path(),
    );
    let root = Root::open(temp.path()).expect("open");
    let removed = remove_tree(&root, Path::new("tree"));
    let walked: Result<Vec<_>, _> = Walk::new(root.as_fd()).expect("walk").collect();
    let read = root.list(Path::new("tree/zz/mounted/bin"));
    run("umount", &[point.to_str().expect("utf-8")], temp.path());
    let is_named = |error: &Error| matches!(error, Error::Mount { path } if path.starts_with("tree/zz/mounted"));
    assert!(
        is_named(removed.as_ref().expect_err("mount")),
        "{removed:?}"
    );
    assert!(is_named(walked.as_ref().expect_err("mount")));
    assert!(is_named(read.as_ref().expect_err("mount")), "{read:?}");
    assert!(
        temp.path().join("tree/a/file").exists(),
        "something was removed before the mount was seen"
    );
    remove_tree(&root, Path::new("tree")).expect("without the mount");
}

#[test]
fn an_immutable_file_is_reported_before_anything_is_removed() {
    let temp = tempfile::tempdir().expect("tempdir");
    fs::create_dir_all(temp.path().join("tree/a")).expect("mkdir");
    fs::write(temp.path().join("tree/a/file"), "x").expect("write");
    fs::write(temp.path().join("tree/z"), "x").expect("write");
    run("chattr", &["+i", "tree/z"], temp.path());
    let root = Root::open(temp.path()).expect("open");
    let removed = root.remove_dir_all(Path::new("tree"));
    let single = root.remove_file(Path::new("tree/z"));
    run("chattr", &["-i", "tree/z"], temp.path());
    for error in [
        removed.expect_err("immutable"),
        single.expect_err("immutable"),
    ] {
        assert!(
            matches!(&error, Error::Immutable { path } if path == Path::new("tree/z")),
            "{error:?}"
        );
    }
    assert!(temp.path().join("tree/a/file").exists());
}

#[test]
fn the_walk_is_sorted_and_leaves_what_it_enters() {
    let temp = tempfile::tempdir().expect("tempdir");
    rich_tree(temp.path());
    let root = Root::open(temp.path()).expect("open");
    let mut walk = Walk::new(root.as_fd()).expect("walk");
    let (mut paths, mut open) = (Vec::new(), Vec::new());
    while let Some(visit) = walk.visit().expect("visit") {
        match visit {
            Visit::Enter(found) => {
                if found.entry.meta.kind == Kind::Directory {
                    open.push(found.entry.path.clone());
                }
                paths.push(found.entry.path);
            }
            Visit::Mount(path) => panic!("no mount is here: {path:?}"),
            Visit::Leave(path) => assert_eq!(open.pop(), Some(path)),
        }
    }
    assert!(open.is_empty());
    assert!(paths.is_sorted(), "{paths:?}");
    let found = run("find", &[".", "-printf", r"%P\0"], temp.path());
    let mut expected: Vec<PathBuf> = found
        .split(|b| *b == 0)
        .map(|name| PathBuf::from(OsStr::from_bytes(name)))
        .collect();
    expected.pop();
    expected.sort();
    assert_eq!(paths, expected);
}

#[test]
fn a_write_replaces_whole_and_keeps_what_it_says() {
    let temp = tempfile::tempdir().expect("tempdir");
    let root = Root::open(temp.path()).expect("open");
    let path = Path::new("etc/file");
    let missing = root
        .write_atomic(path, b"x", 0o644, (0, 0))
        .expect_err("no directory");
    assert!(missing.is_missing(), "{missing:?}");
    root.create_dir_all(Path::new("etc"), 0o755).expect("mkdir");
    root.write_atomic(path, b"first", 0o4640, (7, 8))
        .expect("write");
    root.rewrite(path, b"second").expect("rewrite");
    let meta = fs::metadata(temp.path().join(path)).expect("stat");
    assert_eq!((meta.uid(), meta.gid()), (7, 8));
    assert_eq!(meta.permissions().mode() & 0o7777, 0o4640);
    assert_eq!(root.read(path, 6).expect("read"), b"second");
    assert!(matches!(root.read(path, 5), Err(Error::TooLong { .. })));
    assert_eq!(root.list(Path::new("etc")).expect("list"), ["file"]);
    let long = PathBuf::from("etc").join("x".repeat(255));
    root.write_atomic(&long, b"y", 0o600, (0, 0))
        .expect("a name of full length");
    let bytes = Path::new(OsStr::from_bytes(b"etc/\xff\x01"));
    root.write_atomic(bytes, b"z", 0o600, (0, 0))
        .expect("a name that is no text");
    assert_eq!(root.read(bytes, 1).expect("read"), b"z");
    run("mkfifo", &["etc/pipe"], temp.path());
    let error = root
        .read(Path::new("etc/pipe"), 1)
        .expect_err("a fifo must not be waited for");
    assert!(matches!(error, Error::Type { .. }), "{error:?}");
}

#[test]
fn a_resolved_path_stays_in_the_root() {
    let temp = tempfile::tempdir().expect("tempdir");
    fs::create_dir_all(temp.path().join("srv/home/ann")).expect("mkdir");
    symlink("/srv/home", temp.path().join("home")).expect("symlink");
    symlink("../../../../../..", temp.path().join("up")).expect("symlink");
    let root = Root::open(temp.path()).expect("open");
    assert_eq!(
        root.resolve(Path::new("/home/ann")).expect("resolve"),
        Path::new("srv/home/ann")
    );
    assert_eq!(
        root.resolve(Path::new("up/srv")).expect("resolve"),
        Path::new("srv")
    );
    assert!(
        root.resolve(Path::new("/nowhere"))
            .expect_err("missing")
            .is_missing()
    );
}

#[test]
fn what_a_copy_would_inherit_from_above_is_not_in_it() {
    let temp = tempfile::tempdir().expect("tempdir");
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    fs::create_dir(&from).expect("mkdir");
    fs::create_dir(&to).expect("mkdir");
    rich_tree(&from);
    run("setfacl", &["-d", "-m", "u:4321:rwx", "to"], temp.path());
    copy(&from, &to, How::Copy).expect("copy");
    assert_eq!(observed(&to), observed(&from));
}

#[test]
fn what_has_no_bound_of_its_own_is_an_error_before_it_is_a_burden() {
    let temp = tempfile::tempdir().expect("tempdir");
    let from = temp.path().join("from");
    fs::create_dir_all(from.join("a/b/c/d")).expect("mkdir");
    for number in 0..30 {
        let (one, two) = (format!("{number:04}a"), format!("{number:04}b"));
        fs::write(from.join(&one), "x").expect("write");
        fs::hard_link(from.join(&one), from.join(&two)).expect("link");
    }
    let ample = Limits {
        inside_len_max: 64 << 10,
        links_len_max: 4 << 10,
    };
    let copy = |limits, into: &str| {
        let to = temp.path().join(into);
        fs::create_dir(&to).expect("mkdir");
        let (source, dest) = (Root::open(&from)?, Root::open(&to)?);
        let go_on = &mut |_: &Copied| ControlFlow::Continue(());
        let (source, dest) = (source.as_fd(), dest.as_fd());
        copy_within(limits, source, dest, How::Copy, Vanished::Refuse, go_on)
    };
    copy(ample, "all").expect("names that come soon take room for a while only");
    let is_too_much = |result: Result<Copied, Error>, name: &str| {
        let error = result.expect_err("too much");
        assert!(
            matches!(&error, Error::TooMuch { path, .. } if path == Path::new(name)),
            "{error:?}"
        );
    };
    // Names that never come, outside of what is copied.
    fs::create_dir(temp.path().join("elsewhere")).expect("mkdir");
    for number in 0..200 {
        let name = format!("{number:04}c");
        fs::write(from.join(&name), "x").expect("write");
        fs::hard_link(from.join(&name), temp.path().join("elsewhere").join(&name)).expect("link");
    }
    let error = copy(ample, "links").expect_err("too many links");
    assert!(
        matches!(&error, Error::TooMuch { what, .. } if what.contains("names")),
        "{error:?}"
    );
    run("rm", &["-rf", "elsewhere"], temp.path());
    run(
        "setfattr",
        &["-n", "user.much", "-v", &"x".repeat(2000), "a/b/c"],
        &from,
    );
    let little = Limits {
        inside_len_max: 2500,
        ..ample
    };
    is_too_much(copy(little, "inside"), "a/b/c");
    let root = Root::open(&from).expect("open");
    let walk = Walk::new(root.as_fd()).expect("walk").names_len_max(2000);
    let error = walk.collect::<Result<Vec<_>, _>>().expect_err("names");
    assert!(matches!(error, Error::TooMuch { .. }), "{error:?}");
}

#[test]
fn paths_without_end_are_refused_and_removed_all_the_same() {
    let temp = tempfile::tempdir().expect("tempdir");
    let root = Root::open(temp.path()).expect("open");
    let name = "n".repeat(250);
    let mut dir = root.dir(Path::new("")).expect("open");
    for level in 0..4300 {
        if level == 40 {
            for number in 0..200 {
                let flags = OFlags::CREATE | OFlags::WRONLY;
                let mode = Mode::from_raw_mode(0o600);
                rustix::fs::openat(&dir, format!("{number}"), flags, mode).expect("make");
            }
        }
        rustix::fs::mkdirat(&dir, &name, Mode::from_raw_mode(0o700)).expect("mkdir");
        dir = rustix::fs::openat(&dir, &name, OFlags::DIRECTORY, Mode::empty()).expect("open");
    }
    let walked = Walk::new(root.as_fd()).expect("walk").without_xattrs();
    let error = walked.filter_map(Result::err).next().expect("an end");
    assert!(matches!(&error, Error::TooMuch { path, .. } if path.as_os_str().len() <= 255));
    assert!(root.remove_dir_all(Path::new(&name)).expect("remove"));
    assert_eq!(fs::read_dir(temp.path()).expect("list").count(), 0);
}
