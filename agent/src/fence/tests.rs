//! What the fence lets through, and what its file holds.

use std::collections::BTreeMap;

use tallybook_events::event::{Event, OperationResumed};
use tallybook_events::header::ClaimRef;
use tallybook_events::ids::{Blob, Hash, OperationId, Seq};
use tallybook_testkit::samples;

use super::*;

/// The header of an event of the log; `way` tells lines of history apart.
fn header(epoch: u32, seq: u64, way: u8) -> Vec<u8> {
    let mut header = samples::header(&Event::from(OperationResumed {}), seq);
    header.epoch = Epoch(epoch);
    header.previous = Hash([way; 32]);
    header.encode().unwrap()
}

fn shown(newest: &[u8], proof: Option<&[u8]>) -> Shown {
    Shown {
        newest: Blob(newest.to_vec()),
        proof: proof.map(|header| Blob(header.to_vec())),
    }
}

fn pass(layout: &Layout, newest: &[u8], proof: Option<&[u8]>) -> Verdict {
    let standing = Standing::of(samples::log(), &shown(newest, proof)).unwrap();
    standing.pass(layout).unwrap()
}

fn kept(layout: &Layout) -> Option<Mark> {
    let log = samples::log();
    read(&path(layout, log), log).unwrap().map(|seen| seen.mark)
}

fn of(header: &[u8]) -> Mark {
    mark(samples::log(), header).unwrap()
}

#[test]
fn whoever_acts_must_have_what_was_shown_last() {
    let temp = tempfile::tempdir().unwrap();
    let layout = Layout::below(temp.path());
    assert_eq!(kept(&layout), None);
    let (first, second, other) = (header(1, 10, 0), header(1, 20, 0), header(1, 20, 1));
    // Nothing was shown yet, or just this.
    assert_eq!(pass(&layout, &first, None), Verdict::Passed);
    assert_eq!(pass(&layout, &first, None), Verdict::Passed);
    assert_eq!(kept(&layout), Some(of(&first)));
    // A newer one of nobody knows which line.
    let unproven = Verdict::Unproven(of(&first));
    assert_eq!(pass(&layout, &second, None), unproven);
    assert_eq!(pass(&layout, &second, Some(&header(1, 10, 1))), unproven);
    assert_eq!(pass(&layout, &second, Some(&second)), unproven);
    assert_eq!(kept(&layout), Some(of(&first)), "a refusal changes nothing");
    assert_eq!(pass(&layout, &second, Some(&first)), Verdict::Passed);
    assert_eq!(kept(&layout), Some(of(&second)));
    // One of the same log that was behind when it began, and one of a line that parted since.
    let behind = header(1, 15, 0);
    assert_eq!(pass(&layout, &behind, Some(&second)), Verdict::Passed);
    assert_eq!(kept(&layout), Some(of(&second)), "what was newest stays");
    let unproven = Verdict::Unproven(of(&second));
    assert_eq!(pass(&layout, &other, Some(&first)), unproven);
    assert_eq!(pass(&layout, &other, Some(&other)), unproven);
}

#[test]
fn a_recovery_lets_in_and_shuts_out_what_was_before() {
    let temp = tempfile::tempdir().unwrap();
    let layout = Layout::below(temp.path());
    let (before, after) = (header(1, 20, 0), header(2, 12, 0));
    assert_eq!(pass(&layout, &before, None), Verdict::Passed);
    assert_eq!(pass(&layout, &after, None), Verdict::Passed);
    assert_eq!(kept(&layout), Some(of(&after)));
    let unproven = Verdict::Unproven(of(&after));
    assert_eq!(pass(&layout, &before, None), unproven);
    assert_eq!(pass(&layout, &header(1, 99, 0), Some(&before)), unproven);
}

#[test]
fn what_is_no_header_of_this_log_is_not_believed() {
    let log = samples::log();
    let whole = header(1, 10, 0);
    let refused = |newest: &[u8], proof: Option<&[u8]>| {
        let standing = Standing::of(log, &shown(newest, proof));
        matches!(standing, Err(Error::Foreign { .. }))
    };
    assert!(!refused(&whole, Some(&whole)));
    assert!(refused(&whole[1..], None));
    assert!(refused(&whole, Some(&[])));
    let mut other = samples::header(&Event::from(OperationResumed {}), 10);
    other.log = LogId::from_bytes([9; 16]);
    let other = other.encode().unwrap();
    assert!(refused(&other, None));
    assert!(refused(&whole, Some(&other)));
}

#[test]
fn any_damage_refuses() {
    let temp = tempfile::tempdir().unwrap();
    let layout = Layout::below(temp.path());
    let header = header(1, 1, 0);
    assert_eq!(pass(&layout, &header, None), Verdict::Passed);
    let path = path(&layout, samples::log());
    let whole = std::fs::read(&path).unwrap();
    let standing = Standing::of(samples::log(), &shown(&header, None)).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let refused = standing.pass(&layout);
        assert!(matches!(refused, Err(Error::Damaged { .. })), "byte {at}");
        std::fs::write(&path, &whole[..at]).unwrap();
        let refused = standing.pass(&layout);
        assert!(matches!(refused, Err(Error::Damaged { .. })), "cut at {at}");
    }
}

#[test]
fn what_the_first_layout_says_is_still_seen() {
    let temp = tempfile::tempdir().unwrap();
    let layout = Layout::below(temp.path());
    let log = samples::log();
    let (seen, newest) = (header(2, 20, 0), header(2, 30, 0));
    let claim = |header: &[u8]| {
        let Mark { seq, hash, .. } = of(header);
        ClaimRef { seq, hash }
    };
    #[derive(Serialize)]
    struct Claims {
        log: LogId,
        epoch: Epoch,
        claim_seq: Seq,
        claims: BTreeMap<OperationId, ClaimRef>,
    }
    std::fs::create_dir_all(layout.receipts(log)).unwrap();
    let write = |claims: &[(OperationId, ClaimRef)]| {
        let body = codec::encode(&Claims {
            log,
            epoch: Epoch(2),
            claim_seq: Seq(20),
            claims: claims.iter().copied().collect(),
        });
        let body = body.unwrap();
        let mut bytes = b"TBF1".to_vec();
        bytes.extend_from_slice(blake3::hash(&body).as_bytes());
        bytes.extend_from_slice(&body);
        std::fs::write(path(&layout, log), &bytes).unwrap();
    };
    write(&[
        (samples::operation(2), claim(&seen)),
        (samples::operation(1), claim(&header(2, 5, 0))),
    ]);
    assert_eq!(kept(&layout), Some(of(&seen)));
    assert_eq!(
        pass(&layout, &newest, None),
        Verdict::Unproven(of(&seen)),
        "it asks for what was seen"
    );
    assert_eq!(pass(&layout, &newest, Some(&seen)), Verdict::Passed);
    assert_eq!(kept(&layout), Some(of(&newest)));
    // One that was claimed before a recovery, and resumed behind it.
    let claimed_before = header(1, 20, 0);
    write(&[(samples::operation(1), claim(&claimed_before))]);
    assert_eq!(
        pass(&layout, &newest, Some(&claimed_before)),
        Verdict::Passed
    );
}
