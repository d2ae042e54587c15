//! What arrives is what was sent, to independent observers.

use super::*;
use crate::tree::manifest::{Aspect, differences};

/// One of everything that a root file system can hold.
fn rich_tree(dir: &Path) {
    fs::write(dir.join("large"), noise(1, 3 * 1024 * 1024 + 17)).unwrap();
    run(
        dir,
        r#"
        mkdir -p etc/deep/er usr/bin var/empty closed
        printf hello > etc/hello; : > etc/nothing
        printf hello > etc/hello-again
        cp etc/hello usr/bin/su; chown 0:100000 usr/bin/su; chmod 4755 usr/bin/su
        cp etc/hello usr/bin/ping; setcap cap_net_raw+ep usr/bin/ping
        chown 100000:100001 etc/hello; chmod 0640 etc/hello
        setfattr -n user.note -v "some text" etc/hello
        setfattr -n trusted.note -v 0x00ff etc/deep
        setfacl -m u:1234:rwx,g:55:r etc/deep/er; setfacl -d -m u:1234:rw etc/deep
        setfacl -m u:1234:r etc/hello-again
        truncate -s 10M var/hole; truncate -s 9M var/sparse
        printf data | dd of=var/sparse bs=1 seek=5000000 conv=notrunc status=none
        printf tail >> var/sparse
        truncate -s 40G var/lastlog; printf x | dd of=var/lastlog bs=1 seek=30G conv=notrunc status=none
        ln etc/hello etc/also; ln etc/hello a-link
        ln -s /etc/passwd absolute; ln -s ../../outside dangling; ln absolute absolute-too
        chown -h 7:8 absolute; touch -h -d '1999-01-01 01:02:03.123456789' absolute
        mknod -m 666 null c 1 3; mknod -m 660 disk b 8 1; mkfifo -m 640 pipe; ln null null-too
        chown 5:6 null pipe
        printf odd > "$(printf 'odd \377\n\tname')"
        mkdir etc-dash; printf x > etc-dash/x; printf x > etc.x
        chmod 0500 closed; chmod 1777 var/empty; printf c > closed/c
        touch -d '2001-02-03 04:05:06.000000007' closed/c etc/hello
        touch -d '1960-01-01' etc/nothing
        touch -d '2010-10-10 10:10:10.5' closed etc/deep/er etc/deep etc var .
        chmod 0751 .
        "#,
    );
    if Command::new("python3").arg("-V").output().is_ok() {
        run(
            dir,
            "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")'; touch -d 2010-10-10 .",
        );
    }
}

#[test]
fn everything_arrives_by_independent_observers() {
    let hosts = Hosts::new();
    rich_tree(&hosts.rootfs());
    let expect = hosts.seal();
    assert_eq!(probe(&step(expect), &hosts.dest), Seen::Absent);
    let (sent, received) = hosts.transfer(expect);
    let (sent, received) = (sent.unwrap(), received.unwrap());
    // lastlog reads as 40 GiB of zeros to sha256sum; keep that out of the test's time.
    for dir in [hosts.rootfs(), hosts.received()] {
        let allocated = run(&dir, "stat -c '%s %b' var/lastlog var/hole var/sparse");
        let blocks: u64 = allocated
            .lines()
            .map(|l| l.split(' ').nth(1).unwrap().parse::<u64>().unwrap())
            .sum();
        assert!(blocks < 2048, "{allocated}");
        run(
            &dir,
            "cmp -n 2000000 -i 32212253720 var/lastlog /dev/zero || true; test $(stat -c %s var/lastlog) = 42949672960; rm var/lastlog; touch -d 2010-10-10 var",
        );
    }
    assert_eq!(observed(&hosts.rootfs()), observed(&hosts.received()));
    assert_eq!(received.manifest, expect);
    assert_eq!(received.received_bytes, sent.content_bytes);
    assert_eq!(received.wire_bytes, sent.wire_bytes);
    assert_eq!((received.resumed_pieces, received.local_pieces), (0, 0));
    let Seen::Done(seen) = probe(&step(expect), &hosts.dest) else {
        panic!("a finished transfer is seen");
    };
    let output: Received = tallybook_events::codec::decode(&seen.output.0).unwrap();
    assert_eq!(output, received);
}

#[test]
fn a_staged_tree_without_manifest_is_sent_and_undo_removes_what_came() {
    let hosts = Hosts::new();
    let staging = hosts.source.staging(OPERATION, StepIndex(1));
    fs::create_dir_all(staging.join("rootfs/etc")).unwrap();
    fs::write(staging.join("rootfs/etc/f"), "content").unwrap();
    let expect = build(&staging.join("rootfs")).id();
    let (mut sender, mut receiver) = links(straight());
    let source = SendSource::Staged {
        operation: OPERATION,
        step: StepIndex(1),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&mut sender, &source, &hosts.source).unwrap());
        forward(&step(expect), &hosts.dest, &mut receiver).unwrap();
    });
    assert_eq!(
        fs::read(hosts.received().join("etc/f")).unwrap(),
        b"content"
    );
    assert!(
        !staging.join("manifest").exists(),
        "the sending end changes nothing"
    );
    for changed in [true, false] {
        let done = with_context(&hosts.dest, &mut receiver, |context| {
            step(expect).undo(context, None).unwrap()
        });
        assert_eq!(done.changed, changed);
        assert!(!hosts.staging().exists());
    }
}

fn publish_on_dest(hosts: &Hosts, generation: u32) {
    let to = hosts.dest.generation(&web(), Generation(generation));
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::rename(hosts.staging(), &to).unwrap();
}

#[test]
fn a_refresh_sends_what_changed_and_an_unchanged_one_nothing() {
    let hosts = Hosts::new();
    rich_tree(&hosts.rootfs());
    run(&hosts.rootfs(), "rm var/lastlog");
    let first = hosts.seal();
    hosts.transfer(first).1.unwrap();
    publish_on_dest(&hosts, 1);

    let (outcome, link) = hosts.transfer_bent(first, straight());
    let received = outcome.1.unwrap();
    assert_eq!((received.received_pieces, received.wire_bytes), (0, 0));
    assert_eq!(
        received.local_bytes,
        build(&hosts.rootfs()).content_len() - 16
    );
    // One round trip: an offer came, and `Done` is all that was answered.
    assert_eq!(link.sent.len(), 1, "{:?}", link.sent);
    assert_eq!(observed(&hosts.rootfs()), observed(&hosts.received()));
    publish_on_dest(&hosts, 2);

    let rootfs = hosts.rootfs();
    let mut large = fs::read(rootfs.join("large")).unwrap();
    large[1024 * 1024 + 5] ^= 1;
    fs::write(rootfs.join("large"), &large).unwrap();
    run(
        &rootfs,
        "printf new > etc/new; mv closed/c closed/d; chmod 700 usr/bin/su",
    );
    let second = hosts.seal();
    let received = hosts.transfer(second).1.unwrap();
    assert_eq!(received.received_pieces, 2);
    assert_eq!(received.received_bytes, 1024 * 1024 + 3);
    assert_eq!(observed(&rootfs), observed(&hosts.received()));
}

#[test]
fn a_local_tree_that_is_not_what_its_manifest_says_is_not_used() {
    let hosts = Hosts::new();
    fs::write(hosts.rootfs().join("a"), "aaaa").unwrap();
    fs::write(hosts.rootfs().join("b"), "bbbb").unwrap();
    let expect = hosts.seal();
    hosts.transfer(expect).1.unwrap();
    publish_on_dest(&hosts, 1);
    let local = hosts.dest.generation(&web(), Generation(1)).join("rootfs");
    fs::write(local.join("a"), "AAAA").unwrap();
    fs::remove_file(local.join("b")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", local.join("b")).unwrap();
    let received = hosts.transfer(expect).1.unwrap();
    assert_eq!((received.local_pieces, received.received_pieces), (0, 2));
    assert_eq!(observed(&hosts.rootfs()), observed(&hosts.received()));
}

#[test]
fn progress_ends_at_its_total() {
    let hosts = Hosts::new();
    for n in 0..40 {
        fs::write(hosts.rootfs().join(format!("{n}")), noise(n, 100_000)).unwrap();
    }
    let expect = hosts.seal();
    let (outcome, link) = hosts.transfer_bent(expect, straight());
    outcome.1.unwrap();
    let told: Vec<_> = link
        .progress
        .iter()
        .filter(|p| p.0 == "receiving")
        .collect();
    assert_eq!(
        told.last().unwrap(),
        &&("receiving".to_owned(), 4_000_000, 4_000_000)
    );
    assert!(told.windows(2).all(|pair| pair[0].1 <= pair[1].1));
}

#[test]
fn each_change_to_a_tree_is_one_difference() {
    let dir = tempfile::tempdir().unwrap();
    rich_tree(dir.path());
    let before = build(dir.path());
    assert_eq!(before.id(), build(dir.path()).id());
    for (script, path, aspect) in [
        ("chmod 600 closed/c", "closed/c", Aspect::Mode),
        ("chown 9 pipe", "pipe", Aspect::Owner),
        ("touch -d @5 usr/bin/su", "usr/bin/su", Aspect::Mtime),
        (
            "setfattr -x user.note etc/hello",
            "a-link",
            Aspect::Xattr {
                name: b"user.note".to_vec(),
            },
        ),
        (
            "setfacl -b etc/hello-again",
            "etc/hello-again",
            Aspect::Xattr {
                name: b"system.posix_acl_access".to_vec(),
            },
        ),
        (
            "t=$(stat -c %y large); printf X | dd of=large bs=1 seek=1500000 conv=notrunc status=none; touch -d \"$t\" large",
            "large",
            Aspect::Content {
                offset: 1024 * 1024,
            },
        ),
        (
            "t=$(stat -c %y var/sparse); printf '\\0' | dd of=var/sparse bs=1 seek=100000 conv=notrunc status=none; touch -d \"$t\" var/sparse",
            "var/sparse",
            Aspect::Holes,
        ),
    ] {
        let last = build(dir.path());
        run(dir.path(), script);
        let found = differences(&last, &build(dir.path()));
        assert_eq!(found.len(), 1, "{script}: {found:?}");
        assert_eq!(found[0].aspect, aspect, "{script}");
        assert_eq!(found[0].path.as_path(), Path::new(path), "{script}");
        let root = Root::open(dir.path()).unwrap();
        let verified = last
            .verify(root.as_fd(), &mut |_| ControlFlow::Continue(()))
            .unwrap();
        assert_eq!(verified, found);
    }
}

#[test]
fn the_expected_id_can_be_what_another_step_published() {
    use crate::step::OutputOf;
    use crate::steps::template_publish::Published;
    let hosts = Hosts::new();
    fs::write(hosts.rootfs().join("a"), "content").unwrap();
    let published = Published {
        manifest: hosts.seal(),
        entries: 2,
        size_bytes: 7,
    };
    let output = Blob(tallybook_events::codec::encode(&published).unwrap());
    let outputs = BTreeMap::from([(StepIndex(2), output)]);
    let mut step = step(Hash::ZERO);
    step.expect = Expect::Output(OutputOf::step(StepIndex(2)));
    let params = crate::step::params(&step).unwrap();
    let row = crate::steps::find("tree.receive").unwrap();
    let (mut sender, mut receiver) = links(straight());
    let done = std::thread::scope(|scope| {
        scope.spawn(|| serve(&mut sender, &sent_generation(), &hosts.source).unwrap());
        with_outputs(&hosts.dest, &mut receiver, &outputs, |context| {
            (row.forward)(&params, context)
        })
    });
    let received: Received = tallybook_events::codec::decode(&done.unwrap().output.0).unwrap();
    assert_eq!(received.manifest, published.manifest);
}
