//! Transfers cut at every point go on where they stopped, with every byte accounted for.

use super::*;
use crate::transfer::message::Pack;

/// A tree of a dozen packs: large files, small files, and one content twice.
fn fill(rootfs: &Path) {
    fs::write(rootfs.join("large"), noise(1, 4 * 1024 * 1024 + 9)).unwrap();
    fs::create_dir(rootfs.join("small")).unwrap();
    for n in 0..60 {
        fs::write(rootfs.join(format!("small/{n}")), noise(100 + n, 50_000)).unwrap();
    }
    fs::write(rootfs.join("copy"), noise(100, 50_000)).unwrap();
}

/// Cuts the line at the `at`-th pack (from 0): before it, in it, or right after it.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Before,
    Within,
    After,
}

fn cut_at(at: usize, cut: Cut) -> Bend {
    let mut packs = 0;
    let mut gone = false;
    Box::new(move |bytes| {
        if gone {
            return Fate::Cut(None);
        }
        if !matches!(peek(&bytes), Some(FromSender::Pack(_))) {
            return Fate::Arrives(bytes);
        }
        packs += 1;
        if packs <= at {
            return Fate::Arrives(bytes);
        }
        gone = true;
        match cut {
            Cut::Before => Fate::Cut(None),
            Cut::Within => Fate::Cut(Some(bytes[..bytes.len() / 2].to_vec())),
            Cut::After => Fate::Cut(Some(bytes)),
        }
    })
}

/// Counts the content of the packs that go by.
fn counting(count: Sender<u64>) -> Bend {
    Box::new(move |bytes| {
        if let Some(FromSender::Pack(Pack { pieces, .. })) = peek(&bytes) {
            count
                .send(pieces.iter().map(|p| u64::from(p.1)).sum())
                .unwrap();
        }
        Fate::Arrives(bytes)
    })
}

#[test]
fn cut_anywhere_nothing_is_sent_twice() {
    let hosts = Hosts::new();
    fill(&hosts.rootfs());
    let expect = hosts.seal();
    let whole = hosts.transfer(expect).1.unwrap();
    let expected = observed(&hosts.rootfs());
    let packs = {
        let (count, counted) = channel();
        fs::remove_dir_all(hosts.staging()).unwrap();
        hosts.transfer_bent(expect, counting(count)).0.1.unwrap();
        counted.iter().count()
    };
    assert!(packs >= 7, "{packs}");
    for at in 0..packs {
        for cut in [Cut::Before, Cut::Within, Cut::After] {
            fs::remove_dir_all(hosts.staging()).unwrap();
            let (first, _) = hosts.transfer_bent(expect, cut_at(at, cut));
            let failure = first.1.unwrap_err();
            let last = at == packs - 1 && matches!(cut, Cut::After);
            assert!(
                matches!(failure.class, FailureClass::Peer) || last,
                "{at} {cut:?}: {failure:?}"
            );
            assert!(matches!(
                probe(&step(expect), &hosts.dest),
                Seen::Partial { .. }
            ));
            let (count, counted) = channel();
            let (second, _) = hosts.transfer_bent(expect, counting(count));
            let received = second.1.unwrap();
            let sent_again: u64 = counted.iter().sum();
            assert_eq!(received.received_pieces, sent_again, "{at} {cut:?}");
            assert_eq!(
                received.resumed_pieces + received.received_pieces,
                whole.received_pieces,
            );
            assert_eq!(
                received.resumed_bytes + received.received_bytes,
                whole.received_bytes,
            );
            let arrived = at + usize::from(matches!(cut, Cut::After));
            assert!(arrived == 0 || received.resumed_pieces > 0, "{at} {cut:?}");
            if arrived == packs {
                assert_eq!(received.received_pieces, 0);
            }
            assert_eq!(received.repaired, None);
            assert_eq!(observed(&hosts.received()), expected, "{at} {cut:?}");
        }
    }
}

#[test]
fn what_arrived_before_the_cut_is_exactly_what_is_resumed() {
    let hosts = Hosts::new();
    fill(&hosts.rootfs());
    let expect = hosts.seal();
    let (count, counted) = channel();
    let mut cut = cut_at(4, Cut::Before);
    let mut counting = counting(count);
    let both: Bend = Box::new(move |bytes| match cut(bytes) {
        Fate::Arrives(bytes) => counting(bytes),
        gone => gone,
    });
    let (first, _) = hosts.transfer_bent(expect, both);
    assert!(first.0.is_err() && first.1.is_err());
    let arrived: u64 = counted.iter().sum();
    let received = hosts.transfer(expect).1.unwrap();
    assert_eq!(received.resumed_pieces, arrived);
}

#[test]
fn a_transfer_cut_again_and_again_gets_there() {
    let hosts = Hosts::new();
    fill(&hosts.rootfs());
    let expect = hosts.seal();
    let mut tries = 0;
    loop {
        tries += 1;
        let (outcome, _) = hosts.transfer_bent(expect, cut_at(1, Cut::Within));
        if outcome.1.is_ok() {
            break;
        }
        assert!(tries < 30);
    }
    assert!(tries > 5, "{tries}");
    assert_eq!(observed(&hosts.rootfs()), observed(&hosts.received()));
}

#[test]
fn a_finished_transfer_can_be_repeated() {
    let hosts = Hosts::new();
    fill(&hosts.rootfs());
    run(
        &hosts.rootfs(),
        "ln large also; ln -s x y; mknod n c 1 3; ln y z; chmod 500 small; setfacl -d -m u:5:r small",
    );
    let expect = hosts.seal();
    hosts.transfer(expect).1.unwrap();
    let received = hosts.transfer(expect).1.unwrap();
    assert_eq!(received.received_pieces, 0);
    assert_eq!(observed(&hosts.rootfs()), observed(&hosts.received()));
}

#[test]
fn a_stranger_in_the_staging_directory_is_left_alone() {
    let hosts = Hosts::new();
    let expect = hosts.seal();
    fs::create_dir_all(hosts.staging()).unwrap();
    fs::write(
        hosts.staging().join("made-by"),
        "018f0000-0000-7000-8000-000000000000 7\n",
    )
    .unwrap();
    let (_, received) = hosts.transfer(expect);
    assert_eq!(received.unwrap_err().class, FailureClass::Exists);
    assert!(matches!(
        probe(&step(expect), &hosts.dest),
        Seen::Conflict { .. }
    ));
}

/// As after a power cut between writing content and journalling it.
#[test]
fn what_is_not_in_the_journal_is_sent_again_and_written_over() {
    let hosts = Hosts::new();
    fill(&hosts.rootfs());
    let expect = hosts.seal();
    hosts
        .transfer_bent(expect, cut_at(4, Cut::Before))
        .0
        .1
        .unwrap_err();
    let journal = hosts.staging().join("received");
    let bytes = fs::read(&journal).unwrap();
    fs::write(&journal, &bytes[..bytes.len() - 1]).unwrap();
    let some = hosts.transfer_bent(expect, cut_at(0, Cut::Before)).0.1;
    some.unwrap_err();
    fs::write(&journal, &bytes[..40]).unwrap();
    let large = hosts.received().join("large");
    fs::write(&large, noise(77, 6 * 1024 * 1024)).unwrap();
    let received = hosts.transfer(expect).1.unwrap();
    assert_eq!(received.resumed_pieces, 0);
    assert_eq!(observed(&hosts.rootfs()), observed(&hosts.received()));
}

#[test]
fn a_stop_keeps_what_had_come() {
    let hosts = Hosts::new();
    fill(&hosts.rootfs());
    let expect = hosts.seal();
    let (mut sender, mut receiver) = links(straight());
    receiver.stop_when_receiving = true;
    let (sent, received) = std::thread::scope(|scope| {
        let sending = scope.spawn(|| serve(&mut sender, &sent_generation(), &hosts.source));
        let received = forward(&step(expect), &hosts.dest, &mut receiver);
        (sending.join().unwrap(), received)
    });
    assert_eq!(received.unwrap_err().class, FailureClass::Interrupted);
    assert_eq!(sent.unwrap_err().class, FailureClass::Peer);
    let received = hosts.transfer(expect).1.unwrap();
    assert!(received.resumed_pieces > 0);
    assert_eq!(observed(&hosts.rootfs()), observed(&hosts.received()));
}
