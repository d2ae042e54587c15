//! A log that is longer than what is read of it at once.

use tallybook::journal::{Journal, Limits};
use tallybook_testkit::samples;
use tallybook_testkit::story::Story;

use crate::fixture::Fixture;

#[test]
fn a_long_log_is_printed_whole_once_and_in_order() {
    let fixture = Fixture::empty();
    let records = Story::of(3, 10_000).records;
    let directory = fixture.store().join("journal");
    let mut journal = Journal::create(&directory, samples::log(), Limits::default()).unwrap();
    for write in records.chunk_by(|one, other| one.header.write == other.header.write) {
        journal.append(write).unwrap();
    }
    drop(journal);
    let seqs = |arguments: &[&str]| -> Vec<u64> {
        let arguments = [&["log", "--format", "json"], arguments].concat();
        let run = fixture.run(&arguments);
        assert_eq!(run.code, 0, "{}", run.stderr);
        let seq = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["seq"].as_u64().unwrap()
        };
        run.stdout.lines().map(seq).collect()
    };
    let all: Vec<u64> = records.iter().map(|record| record.header.seq.0).collect();
    assert_eq!(seqs(&[]), all);
    // As many as are read at once, one less, and one more.
    for to in [4_095, 4_096, 4_097, 8_192] {
        assert_eq!(seqs(&["--to", &to.to_string()]), all[..to]);
        assert_eq!(seqs(&["--from", &(to + 1).to_string()]), all[to..]);
    }
    let steps: Vec<u64> = records
        .iter()
        .filter(|record| record.header.kind.starts_with("step."))
        .map(|record| record.header.seq.0)
        .collect();
    assert!(steps.len() > 4_096, "{}", steps.len());
    assert_eq!(seqs(&["--kind", "step"]), steps);
}
