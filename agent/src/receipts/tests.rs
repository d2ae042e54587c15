//! The journal's bytes, its torn tails and its damage.

use tallybook_events::header::ClaimRef;
use tallybook_events::ids::{Attempt, Blob, BootId, Epoch, Hash, JournalId, Seq, StepIndex};
use tallybook_events::step::{Fence, Phase, StepDone, StepKey};

use super::scan::prefix;
use super::*;

const LOG: LogId = LogId::from_bytes([1; 16]);
const OPERATION: OperationId = OperationId::from_bytes([2; 16]);

fn receipt(step: u32, phase: Phase) -> Receipt {
    Receipt {
        key: StepKey {
            log: LOG,
            operation: OPERATION,
            step: StepIndex(step),
            attempt: Attempt(1),
        },
        fence: Fence {
            log: LOG,
            epoch: Epoch(1),
            claim: ClaimRef {
                seq: Seq(7),
                hash: Hash([3; 32]),
            },
        },
        kind: "host.observe".to_owned(),
        boot: BootId::from_bytes([4; 16]),
        time_unix_us: 1_795_000_000_000_000,
        phase,
    }
}

fn done() -> Phase {
    Phase::Succeeded(StepDone {
        changed: true,
        output: Blob(vec![0xc0]),
        facts: Vec::new(),
        captured: Vec::new(),
    })
}

struct Host {
    _temp: tempfile::TempDir,
    layout: Layout,
}

impl Host {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        Host {
            layout: Layout::below(temp.path()),
            _temp: temp,
        }
    }

    fn open(&self) -> (Journal, Vec<Receipt>) {
        let mut found = Vec::new();
        let journal = Journal::open(&self.layout, LOG, &mut |it| found.push(it)).unwrap();
        (journal, found)
    }

    /// A journal that holds these steps' receipts, all started.
    fn with(steps: std::ops::Range<u32>) -> Self {
        let host = Host::new();
        let (mut journal, _) = host.open();
        for step in steps {
            journal.append(&receipt(step, Phase::Started)).unwrap();
        }
        host
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(path(&self.layout, LOG)).unwrap()
    }

    fn store(&self, bytes: &[u8]) {
        fs::write(path(&self.layout, LOG), bytes).unwrap();
    }

    fn report(&self) -> ReceiptReport {
        report(&self.layout, LOG, OPERATION).unwrap()
    }

    fn is_live(&self) -> bool {
        self.report().journal.is_some()
    }
}

fn steps(receipts: &[Receipt]) -> Vec<u32> {
    receipts.iter().map(|it| it.key.step.0).collect()
}

#[test]
fn golden_bytes() {
    let frame = encode(&receipt(5, Phase::Started)).unwrap();
    let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, include_str!("golden_started.hex").trim());
    let frame = encode(&receipt(5, done())).unwrap();
    let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, include_str!("golden_succeeded.hex").trim());
    let head = encode_head(LOG, JournalId::from_bytes([5; 16]));
    let hex: String = head.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, include_str!("golden_head.hex").trim());
    assert_eq!(head[36..], blake3::hash(&head[..36]).as_bytes()[..28]);
    // And from the bytes alone, by the table in the module's documentation.
    let len = u32::from_le_bytes(frame[4..8].try_into().unwrap()) as usize;
    assert_eq!(&frame[..4], b"TBA1");
    assert_eq!(frame[8..12], blake3::hash(&frame[..8]).as_bytes()[..4]);
    assert_eq!(frame.len(), 12 + len + 32);
    assert_eq!(
        frame[12 + len..],
        *blake3::hash(&frame[12..12 + len]).as_bytes()
    );
}

#[test]
fn a_missing_journal_is_not_live_and_asking_makes_none() {
    let host = Host::new();
    assert!(!host.is_live());
    assert_eq!(identity(&host.layout, LOG), None);
    assert!(!path(&host.layout, LOG).exists());
    let (journal, found) = host.open();
    assert!(journal.live().is_some() && found.is_empty());
    assert_eq!(host.report().journal, journal.live());
    assert_eq!(identity(&host.layout, LOG), journal.live());
}

#[test]
fn a_journal_that_was_made_anew_is_another() {
    let host = Host::with(0..1);
    let before = host.report().journal;
    assert_eq!(
        host.open().0.live(),
        before,
        "the same as long as it is there"
    );
    fs::remove_file(path(&host.layout, LOG)).unwrap();
    assert_eq!(identity(&host.layout, LOG), None);
    let (journal, _) = host.open();
    assert!(journal.live().is_some());
    assert_ne!(journal.live(), before);
}

#[test]
fn many_makers_make_one() {
    let host = Host::new();
    let ids: Vec<_> = std::thread::scope(|scope| {
        let made: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| host.open().0.live().unwrap()))
            .collect();
        made.into_iter().map(|made| made.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let left = fs::read_dir(host.layout.receipts(LOG)).unwrap().count();
    assert_eq!(left, 1, "nothing is left beside it");
}

#[test]
fn a_journal_of_another_log_or_without_a_head_is_not_live() {
    let whole = Host::with(0..2).bytes();
    for bytes in [&whole[HEAD_LEN..], &whole[..HEAD_LEN - 1], &[]] {
        let host = Host::with(0..0);
        host.store(bytes);
        assert!(!host.is_live());
        assert_eq!(identity(&host.layout, LOG), None);
        let (mut journal, found) = host.open();
        assert_eq!(journal.live(), None);
        assert_eq!(found.len(), if bytes.len() > HEAD_LEN { 2 } else { 0 });
        assert_eq!(host.bytes(), bytes, "left as it is");
        journal.append(&receipt(2, Phase::Started)).unwrap();
        assert_eq!(steps(&host.report().receipts).last(), Some(&2));
        assert!(!host.is_live());
    }
    let host = Host::with(0..1);
    let other = LogId::from_bytes([8; 16]);
    fs::create_dir_all(host.layout.receipts(other)).unwrap();
    fs::copy(path(&host.layout, LOG), path(&host.layout, other)).unwrap();
    assert_eq!(identity(&host.layout, other), None);
    assert_eq!(
        report(&host.layout, other, OPERATION).unwrap().journal,
        None
    );
}

#[test]
fn the_newest_receipt_of_each_start_is_reported() {
    let host = Host::with(0..2);
    let (mut journal, found) = host.open();
    assert_eq!(steps(&found), [0, 1]);
    journal.append(&receipt(0, done())).unwrap();
    let mut again = receipt(0, Phase::Started);
    again.key.attempt = Attempt(2);
    journal.append(&again).unwrap();
    let mut foreign = receipt(9, Phase::Started);
    foreign.key.operation = OperationId::from_bytes([9; 16]);
    journal.append(&foreign).unwrap();
    let report = host.report();
    assert!(report.journal.is_some());
    let told = [receipt(0, done()), again, receipt(1, Phase::Started)];
    assert_eq!(report.receipts, told);
}

#[test]
fn a_tail_torn_anywhere_is_put_aside_and_the_journal_stays_live() {
    let whole = Host::with(0..3).bytes();
    let keep = Host::with(0..2).bytes().len();
    for cut in keep + 1..whole.len() {
        let host = Host::with(0..0);
        host.store(&whole[..cut]);
        let report = host.report();
        assert!(report.journal.is_some(), "cut at {cut}");
        assert_eq!(steps(&report.receipts), [0, 1]);
        assert_eq!(host.bytes().len(), cut, "asking changes nothing");
        let (mut journal, found) = host.open();
        assert!(journal.live().is_some());
        assert_eq!(steps(&found), [0, 1]);
        let aside = torn(&host.layout, LOG).unwrap();
        assert_eq!(fs::read(&aside[0]).unwrap(), &whole[keep..cut]);
        journal.append(&receipt(2, Phase::Started)).unwrap();
        assert_eq!(host.bytes(), whole);
    }
}

#[test]
fn a_tail_of_zeros_is_a_torn_one() {
    let whole = Host::with(0..2).bytes();
    let keep = Host::with(0..1).bytes().len();
    for from in [keep, keep + 5, keep + 40, whole.len() - 9] {
        let host = Host::with(0..0);
        let mut bytes = whole.clone();
        bytes[from..].fill(0);
        host.store(&bytes);
        assert!(host.is_live(), "zeros from {from}");
        assert_eq!(steps(&host.open().1), [0]);
        assert_eq!(host.bytes().len(), keep);
    }
}

#[test]
fn damage_anywhere_is_told_and_what_is_behind_it_is_still_found() {
    let whole = Host::with(0..3).bytes();
    let frame = (whole.len() - HEAD_LEN) / 3;
    for at in 0..whole.len() {
        let host = Host::with(0..0);
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        host.store(&bytes);
        let hit = at.checked_sub(HEAD_LEN).map(|at| (at / frame) as u32);
        let expected: Vec<u32> = (0..3).filter(|step| Some(*step) != hit).collect();
        let report = host.report();
        assert_eq!(report.journal, None, "byte {at}");
        assert_eq!(steps(&report.receipts), expected, "byte {at}");
        let (mut journal, found) = host.open();
        assert_eq!(journal.live(), None);
        assert_eq!(steps(&found), expected);
        assert_eq!(host.bytes(), bytes, "damage is left as it is");
        // Written behind it, and found again.
        journal.append(&receipt(3, Phase::Started)).unwrap();
        let report = host.report();
        assert_eq!(report.journal, None);
        assert_eq!(report.receipts.last().unwrap().key.step, StepIndex(3));
    }
}

#[test]
fn a_frame_inside_a_damaged_body_is_not_believed() {
    let inner = encode(&receipt(42, done())).unwrap();
    let mut outer = receipt(0, Phase::Started);
    outer.kind = String::new();
    let done = StepDone {
        changed: false,
        output: Blob(inner),
        facts: Vec::new(),
        captured: Vec::new(),
    };
    outer.phase = Phase::Succeeded(done);
    let host = Host::with(0..0);
    let mut bytes = host.bytes();
    bytes.extend_from_slice(&encode(&outer).unwrap());
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    host.store(&bytes);
    let report = host.report();
    assert_eq!(report.journal, None);
    assert!(report.receipts.is_empty());
}

#[test]
fn a_whole_frame_that_is_no_receipt_makes_it_not_live() {
    let host = Host::with(0..1);
    let body = codec::encode(&"from the future").unwrap();
    let mut bytes = host.bytes();
    bytes.extend_from_slice(&prefix(u32::try_from(body.len()).unwrap()));
    bytes.extend_from_slice(&body);
    bytes.extend_from_slice(blake3::hash(&body).as_bytes());
    host.store(&bytes);
    assert!(!host.is_live());
    assert_eq!(host.open().1.len(), 1);
    assert_eq!(host.bytes(), bytes);
}

#[test]
fn two_writers_take_turns_and_one_repairs_what_the_other_tore() {
    let host = Host::new();
    let (mut one, _) = host.open();
    let (mut two, _) = host.open();
    one.append(&receipt(0, Phase::Started)).unwrap();
    two.append(&receipt(1, Phase::Started)).unwrap();
    // The first one is cut in the middle of its next write.
    let frame = encode(&receipt(2, Phase::Started)).unwrap();
    let mut bytes = host.bytes();
    bytes.extend_from_slice(&frame[..frame.len() / 2]);
    host.store(&bytes);
    two.append(&receipt(3, Phase::Started)).unwrap();
    let report = host.report();
    assert!(report.journal.is_some());
    assert_eq!(steps(&report.receipts), [0, 1, 3]);
    assert_eq!(torn(&host.layout, LOG).unwrap().len(), 1);
}

#[test]
fn writers_in_parallel_lose_nothing() {
    let host = Host::new();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let host = &host;
            scope.spawn(move || {
                let (mut journal, _) = host.open();
                for number in 0..10 {
                    let step = writer * 10 + number;
                    journal.append(&receipt(step, Phase::Started)).unwrap();
                }
            });
        }
    });
    let report = host.report();
    assert!(report.journal.is_some());
    assert_eq!(steps(&report.receipts), (0..40).collect::<Vec<_>>());
}

/// The receipt of a step of another operation, from which much is to be kept.
fn of_other(step: u32) -> Receipt {
    let mut receipt = receipt(step, done());
    receipt.key.operation = OperationId::from_bytes([9; 16]);
    receipt
}

#[test]
fn what_is_over_is_left_out_and_the_journal_stays_the_same() {
    let host = Host::with(0..3);
    let (mut journal, _) = host.open();
    let id = journal.live();
    journal.append(&of_other(1)).unwrap();
    journal.append(&receipt(3, done())).unwrap();
    journal.append(&of_other(2)).unwrap();
    // Another agent has it open all the while.
    let (mut beside, _) = host.open();
    let forgotten = journal.forget(&[OPERATION].into()).unwrap();
    assert_eq!(forgotten.receipts, 4);
    beside.append(&of_other(3)).unwrap();
    journal.append(&of_other(4)).unwrap();
    let (again, found) = host.open();
    assert_eq!(found, [1, 2, 3, 4].map(of_other));
    assert_eq!((again.live(), identity(&host.layout, LOG)), (id, id));
    assert!(host.report().receipts.is_empty());
    let head = encode_head(LOG, id.unwrap()).to_vec();
    let frames = [1, 2, 3, 4].map(|step| encode(&of_other(step)).unwrap());
    assert_eq!(host.bytes(), [head, frames.concat()].concat());
    assert_eq!(
        operations(&host.layout, LOG).unwrap(),
        [of_other(1).key.operation].into()
    );
    // Nothing left to leave out, nothing written.
    let before = fs::metadata(path(&host.layout, LOG)).unwrap().ino();
    assert_eq!(
        journal.forget(&[OPERATION].into()).unwrap(),
        Forgotten::default()
    );
    assert_eq!(fs::metadata(path(&host.layout, LOG)).unwrap().ino(), before);
}

#[test]
fn a_damaged_journal_is_left_as_it_is() {
    let host = Host::with(0..4);
    let mut bytes = host.bytes();
    bytes[HEAD_LEN + 20] ^= 1;
    host.store(&bytes);
    let (mut journal, _) = host.open();
    assert_eq!(
        journal.forget(&[OPERATION].into()).unwrap(),
        Forgotten::default()
    );
    assert_eq!(host.bytes(), bytes);
}

#[test]
fn a_journal_that_was_taken_away_is_not_written_to() {
    let host = Host::with(0..2);
    let (mut journal, _) = host.open();
    fs::remove_file(path(&host.layout, LOG)).unwrap();
    let error = journal.append(&receipt(2, Phase::Started)).unwrap_err();
    assert!(
        matches!(&error, Error::File { source, .. } if source.kind() == io::ErrorKind::NotFound),
        "{error}"
    );
}

#[test]
fn nobody_loses_a_receipt_to_who_leaves_some_out() {
    let host = Host::with(0..1);
    std::thread::scope(|scope| {
        for writer in 0..3_u32 {
            let host = &host;
            scope.spawn(move || {
                let (mut journal, _) = host.open();
                for step in 0..20 {
                    journal.append(&of_other(writer * 100 + step)).unwrap();
                    journal
                        .append(&receipt(writer * 100 + step, done()))
                        .unwrap();
                }
            });
        }
        for _ in 0..20 {
            let (mut journal, _) = host.open();
            journal.forget(&[OPERATION].into()).unwrap();
        }
    });
    let (_, found) = host.open();
    let kept: BTreeSet<u32> = steps(
        &found
            .into_iter()
            .filter(|it| it.key.operation != OPERATION)
            .collect::<Vec<_>>(),
    )
    .into_iter()
    .collect();
    let wanted = (0..3).flat_map(|writer| (0..20).map(move |step| writer * 100 + step));
    assert_eq!(kept, wanted.collect());
}
