//! An agent's own files on a host: the receipts journal, the fence, marks, and what was before a step acted.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use tallybook_agent::layout::Layout;
use tallybook_agent::receipts::{self, Journal};
use tallybook_agent::{fence, fuzzing, mark};
use tallybook_events::ids::{JournalId, LogId};
use tallybook_events::step::Receipt;
use tallybook_testkit::samples;

use crate::memory::bounded;
use crate::{chosen, directory, part};

static HOST: LazyLock<(Layout, PathBuf)> = LazyLock::new(|| {
    let layout = Layout::below(&directory("receipts"));
    let own = layout.receipts(log());
    std::fs::create_dir_all(&own).expect("memory can be written to");
    (layout, own)
});

fn log() -> LogId {
    samples::log()
}

/// One of the decoders, raw or behind checks that hold.
pub fn run(bytes: &[u8]) {
    let Some((which, bytes)) = chosen(bytes) else {
        return;
    };
    match which % 6 {
        0 => journal(bytes),
        1 => journal(&checked(bytes)),
        2 => seen(bytes),
        3 => {
            seen(&checked_fence(*b"TBF1", bytes));
            seen(&checked_fence(*b"TBF2", bytes));
        }
        4 => marked(bytes),
        _ => before(bytes),
    }
}

fn before(bytes: &[u8]) {
    if let Some(once) = bounded(bytes.len(), || fuzzing::before(bytes)) {
        assert_eq!(fuzzing::before(&once).as_ref(), Some(&once));
    }
}

fn marked(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(origin) = mark::parse(&text) {
        assert_eq!(mark::parse(&mark::text(origin)), Some(origin));
    }
}

fn open(layout: &Layout) -> (Journal, Vec<Receipt>) {
    let mut receipts = Vec::new();
    let journal = Journal::open(layout, log(), &mut |receipt| receipts.push(receipt));
    (journal.expect("memory can be read and written"), receipts)
}

fn journal(bytes: &[u8]) {
    let (layout, own) = &*HOST;
    let path = receipts::path(layout, log());
    std::fs::write(&path, bytes).expect("memory can be written to");
    let operation = samples::receipts()[0].key.operation;
    let report = bounded(bytes.len() + (1 << 10), || {
        receipts::report(layout, log(), operation)
    });
    let report = report.expect("it can be read");
    assert_eq!(
        std::fs::read(&path).expect("it is there"),
        bytes,
        "looking changes nothing"
    );
    let (mut journal, first) = open(layout);
    assert_eq!(
        journal.live(),
        report.journal,
        "who looks and who writes judge alike"
    );
    for receipt in &report.receipts {
        assert!(first.contains(receipt), "what is reported is what is there");
    }
    // What comes behind is found whatever was there, and a whole journal stays one.
    let newest = &samples::receipts()[1];
    journal.append(newest).expect("memory can be written to");
    let (again, second) = open(layout);
    assert_eq!(again.live(), report.journal);
    assert_eq!(
        second.last(),
        Some(newest),
        "a receipt that was appended is found"
    );
    assert_eq!(
        second[..second.len() - 1],
        first[..],
        "and so are those before it"
    );
    tidy(own);
}

/// Torn tails are put aside, one more each time.
fn tidy(own: &Path) {
    for entry in std::fs::read_dir(own).expect("it is there").flatten() {
        let name = entry.file_name();
        if name != "journal" && name != "fence" {
            std::fs::remove_file(entry.path()).expect("it is ours");
        }
    }
}

/// A journal of whatever bodies, each in a frame that holds; what follows a body of no bytes is as it is.
fn checked(mut bytes: &[u8]) -> Vec<u8> {
    let mut journal = receipts::encode_head(log(), JournalId::from_bytes([4; 16])).to_vec();
    while !bytes.is_empty() {
        let body = part(&mut bytes);
        if body.is_empty() {
            journal.extend_from_slice(bytes);
            break;
        }
        let mut prefix = receipts::MAGIC.to_vec();
        prefix.extend_from_slice(&(body.len() as u32).to_le_bytes());
        let check = blake3::hash(&prefix);
        prefix.extend_from_slice(&check.as_bytes()[..4]);
        journal.extend_from_slice(&prefix);
        journal.extend_from_slice(body);
        journal.extend_from_slice(blake3::hash(body).as_bytes());
    }
    journal
}

fn seen(bytes: &[u8]) {
    let (layout, _) = &*HOST;
    let path = fence::path(layout, log());
    std::fs::write(&path, bytes).expect("memory can be written to");
    if let Ok(seen) = bounded(bytes.len(), || fence::read(&path, log())) {
        assert_eq!(
            seen.expect("it is there").log,
            log(),
            "another log's fence is none"
        );
    }
}

/// A fence of this layout.
fn checked_fence(magic: [u8; 4], bytes: &[u8]) -> Vec<u8> {
    let mut file = magic.to_vec();
    file.extend_from_slice(blake3::hash(bytes).as_bytes());
    file.extend_from_slice(bytes);
    file
}
