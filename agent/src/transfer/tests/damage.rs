//! Flipped bits and liars: nothing that the manifest does not vouch for is ever written.

use super::*;
use crate::transfer::message::{self, Pack};

fn two_files() -> (Hosts, Hash) {
    let hosts = Hosts::new();
    fs::create_dir(hosts.rootfs().join("etc")).unwrap();
    fs::write(hosts.rootfs().join("etc/first"), noise(1, 900_000)).unwrap();
    fs::write(hosts.rootfs().join("etc/second"), noise(2, 900_000)).unwrap();
    let expect = hosts.seal();
    (hosts, expect)
}

/// Changes the packs that go by.
fn bend_packs(mut change: impl FnMut(&mut Pack) + Send + 'static) -> Bend {
    Box::new(move |bytes| match peek(&bytes) {
        Some(FromSender::Pack(mut pack)) => {
            change(&mut pack);
            Fate::Arrives(message::encode(FromSender::Pack(pack)).unwrap())
        }
        Some(_) | None => Fate::Arrives(bytes),
    })
}

/// Sends the first pack once more in place of every later one. Which pack is the first is up to the sender's threads.
fn the_first_again() -> impl FnMut(&mut Pack) + Send + 'static {
    let mut first: Option<Pack> = None;
    move |pack| match &first {
        Some(sent) => *pack = sent.clone(),
        None => first = Some(pack.clone()),
    }
}

fn refused(bend: Bend) -> StepFailure {
    let (hosts, expect) = two_files();
    let failure = hosts.transfer_bent(expect, bend).0.1.unwrap_err();
    assert!(!matches!(probe(&step(expect), &hosts.dest), Seen::Done(_)));
    // Whatever was written is right, and the transfer can be gone on with.
    for name in ["etc/first", "etc/second"] {
        if let Ok(written) = fs::read(hosts.received().join(name)) {
            let good = fs::read(hosts.rootfs().join(name)).unwrap();
            assert!(written == good || written.iter().all(|b| *b == 0));
        }
    }
    hosts.transfer(expect).1.unwrap();
    assert_eq!(observed(&hosts.rootfs()), observed(&hosts.received()));
    failure
}

#[test]
fn a_flipped_bit_in_a_pack_is_caught_by_its_id() {
    let failure = refused(bend_packs(|pack| pack.bytes.0[1000] ^= 1));
    assert_eq!(failure.class, FailureClass::Verification);
    assert!(
        failure.message.contains("changed on the way"),
        "{}",
        failure.message
    );
}

#[test]
fn a_pack_with_other_content_is_caught_by_the_manifest_and_named() {
    let failure = refused(bend_packs(|pack| {
        pack.bytes.0[1000] ^= 1;
        pack.id = blake3::hash(&pack.bytes.0).into();
    }));
    assert_eq!(failure.class, FailureClass::Verification);
    assert!(failure.message.contains("/etc/"), "{}", failure.message);
}

#[test]
fn packs_that_are_not_what_was_asked_for_are_refused() {
    let rehash = |pack: &mut Pack| pack.id = blake3::hash(&pack.bytes.0).into();
    let cases: Vec<(&str, Bend)> = vec![
        (
            "not in the manifest",
            bend_packs(|pack| pack.pieces = vec![(7, 1)]),
        ),
        (
            "not in the manifest",
            bend_packs(|pack| pack.pieces = vec![(u32::MAX, 2)]),
        ),
        (
            "nothing, or too much",
            bend_packs(|pack| pack.pieces = vec![]),
        ),
        (
            "nothing, or too much",
            bend_packs(|pack| pack.pieces = vec![(0, u32::MAX)]),
        ),
        (
            "twice",
            bend_packs(|pack| pack.pieces = vec![(0, 1), (0, 1)]),
        ),
        ("not asked for", bend_packs(the_first_again())),
        ("too long", bend_packs(|pack| pack.pieces = vec![(0, 2)])),
        (
            "another length",
            bend_packs(move |pack| {
                pack.bytes.0.push(0);
                rehash(pack);
            }),
        ),
        (
            "another length",
            bend_packs(move |pack| {
                pack.bytes.0.pop();
                rehash(pack);
            }),
        ),
        ("decompressed", bend_packs(|pack| pack.zstd = true)),
        (
            "decompressed",
            bend_packs(move |pack| {
                // A bomb: 64 MiB of zeros in a few bytes.
                pack.bytes = Blob(zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap());
                pack.zstd = true;
                rehash(pack);
            }),
        ),
    ];
    for (what, bend) in cases {
        let failure = refused(bend);
        assert!(
            failure.message.contains(what),
            "{what}: {}",
            failure.message
        );
    }
}

#[test]
fn a_changed_or_foreign_manifest_is_refused_before_anything_is_made() {
    for change in 0..3 {
        let (hosts, expect) = two_files();
        let bend: Bend = Box::new(move |bytes| match peek(&bytes) {
            Some(FromSender::Manifest { len, bytes }) => {
                let mut plain = zstd::bulk::decompress(&bytes.0, len as usize).unwrap();
                match change {
                    0 => plain[40] ^= 1,
                    1 => plain.push(0),
                    _ => {}
                }
                let len = if change == 2 {
                    u32::MAX
                } else {
                    plain.len() as u32
                };
                let bytes = Blob(zstd::bulk::compress(&plain, 1).unwrap());
                Fate::Arrives(message::encode(FromSender::Manifest { len, bytes }).unwrap())
            }
            Some(_) | None => Fate::Arrives(bytes),
        });
        let failure = hosts.transfer_bent(expect, bend).0.1.unwrap_err();
        assert_eq!(failure.class, FailureClass::Verification);
        assert!(
            failure.message.contains("manifest of generation 1"),
            "{}",
            failure.message
        );
        assert!(!hosts.staging().join("manifest").exists());
        assert_eq!(fs::read_dir(hosts.received()).unwrap().count(), 0);
    }
    let (hosts, _) = two_files();
    let (sent, received) = hosts.transfer(Hash([9; 32]));
    assert_eq!(received.unwrap_err().class, FailureClass::Verification);
    assert!(sent.unwrap_err().message.contains("receiving end"));
}

#[test]
fn damage_on_the_sending_host_is_named_there_and_here() {
    let (hosts, expect) = two_files();
    let path = hosts.rootfs().join("etc/second");
    let mut bytes = fs::read(&path).unwrap();
    bytes[5] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (sent, received) = hosts.transfer(expect);
    let (sent, received) = (sent.unwrap_err(), received.unwrap_err());
    assert!(
        sent.message.contains(path.to_str().unwrap()),
        "{}",
        sent.message
    );
    assert!(
        received.message.contains("etc/second"),
        "{}",
        received.message
    );
    assert_eq!(received.class, FailureClass::Verification);
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/shadow", &path).unwrap();
    let (sent, received) = hosts.transfer(expect);
    assert!(sent.unwrap_err().message.contains("etc/second"));
    assert!(received.is_err());
}

#[test]
fn a_damaged_manifest_on_the_sending_host_is_named() {
    let (hosts, expect) = two_files();
    let path = hosts
        .source
        .generation(&web(), Generation(1))
        .join("manifest");
    let good = fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(7) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x80;
        fs::write(&path, bytes).unwrap();
        let (_, received) = hosts.transfer(expect);
        let failure = received.unwrap_err();
        assert_eq!(
            failure.class,
            FailureClass::Verification,
            "{at}: {}",
            failure.message
        );
    }
}

#[test]
fn damage_in_what_had_arrived_is_named_and_made_good() {
    for victim in ["received", "manifest", "rootfs/etc/first"] {
        let (hosts, expect) = two_files();
        hosts.transfer(expect).1.unwrap();
        let path = hosts.staging().join(victim);
        let mut bytes = fs::read(&path).unwrap();
        let at = if victim == "received" { 80 } else { 20 };
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        let received = hosts.transfer(expect).1.unwrap();
        let repaired = received.repaired.unwrap();
        let name = Path::new(victim).file_name().unwrap().to_str().unwrap();
        assert!(repaired.contains(name), "{victim}: {repaired}");
        assert_eq!(received.received_pieces > 0, victim != "manifest");
        assert_eq!(observed(&hosts.rootfs()), observed(&hosts.received()));
    }
}

#[test]
fn a_full_disk_is_said_first_and_gone_on_with_when_there_is_room() {
    let (hosts, expect) = two_files();
    let own = hosts.dest.own();
    fs::create_dir_all(&own).unwrap();
    let mount = |size: &str| format!("mount -t tmpfs -o {size} tmpfs '{}'", own.display());
    let here = hosts.dir.path();
    run(here, &mount("size=1M"));
    let early = hosts.transfer(expect).1;
    // Too little is free only once the transfer runs: the check is passed, and then somebody else fills it.
    run(
        here,
        &format!("mount -o remount,size=8M '{}'", own.display()),
    );
    let filler = own.join("filler");
    let full = filler.clone();
    let bend = bend_packs(move |_| fs::write(&full, vec![1; 6_700_000]).unwrap());
    let late = hosts.transfer_bent(expect, bend).0.1;
    fs::remove_file(filler).unwrap();
    let at_last = hosts.transfer(expect).1;
    let same = at_last.is_ok() && observed(&hosts.rootfs()) == observed(&hosts.received());
    run(here, &format!("umount '{}'", own.display()));
    let early = early.unwrap_err();
    assert_eq!(early.class, FailureClass::DiskFull);
    assert!(early.message.contains("are free"), "{}", early.message);
    let late = late.unwrap_err();
    assert_eq!(late.class, FailureClass::DiskFull, "{}", late.message);
    at_last.unwrap();
    assert!(same);
}
