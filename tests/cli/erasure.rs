//! What is erased: the log that is left is sound, and every command says so.

use serde_json::Value;
use tallybook::log::{Condition, Draft, Log, Open};
use tallybook_events::event::{ErasureAnnounced, ErasureCause, Event, OutputCaptured, SeqRange};
use tallybook_events::ids::{Blob, Seq};
use tallybook_events::record::{Frame, PREFIX_LEN};
use tallybook_events::segment;
use tallybook_events::step::Captured;
use tallybook_events::subject::Subject;

use crate::fixture::{Fixture, Run};

fn json(run: &Run) -> Value {
    serde_json::from_str(&run.stdout).unwrap()
}

/// The events of a kind.
fn of_kind(fixture: &Fixture, kind: &str) -> Vec<u64> {
    let run = fixture.run(&["log", "--kind", kind, "--format", "json"]);
    let lines = run.stdout.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["seq"].as_u64().unwrap()
    });
    lines.collect()
}

fn succeeds(fixture: &Fixture, arguments: &[&str]) -> Run {
    let run = fixture.run(arguments);
    assert_eq!(run.code, 0, "{arguments:?}: {}{}", run.stdout, run.stderr);
    run
}

/// The journal, the projections and a fold of the journal agree; also once the projections are folded anew.
fn is_sound(fixture: &Fixture) {
    for _ in 0..2 {
        let run = succeeds(fixture, &["verify"]);
        assert!(
            run.stdout.contains("verify: ok at event "),
            "{}",
            run.stdout
        );
        succeeds(fixture, &["replay"]);
        let run = succeeds(fixture, &["state", "--format", "json"]);
        assert_eq!(json(&run)["head"]["unknown"], 0);
        std::fs::remove_dir_all(fixture.store().join("projection")).unwrap();
        succeeds(fixture, &["state"]);
    }
}

#[test]
fn a_log_of_which_something_was_erased_is_sound() {
    let fixture = Fixture::story();
    let seq = of_kind(&fixture, "output.captured")[0].to_string();
    let redact = ["redact", &seq, "--reason", "it was printed", "--yes"];
    let run = succeeds(&fixture, &redact);
    assert!(run.stdout.contains("erased 1 payload: "), "{}", run.stdout);
    is_sound(&fixture);
    let expire = ["log", "expire", "--before", "2099-01-01", "--yes"];
    let run = succeeds(&fixture, &expire);
    assert!(run.stdout.contains("erased 1 payload: "), "{}", run.stdout);
    is_sound(&fixture);
}

#[test]
fn an_inventory_that_is_erased_leaves_nothing_to_guess_it_by() {
    let fixture = Fixture::empty();
    succeeds(&fixture, &["cloud", "refresh"]);
    let known = |fixture: &Fixture| {
        let run = succeeds(fixture, &["state", "--format", "json"]);
        json(&run)["inventory"].clone()
    };
    assert_eq!(known(&fixture)["seq"], 2);
    let redact = ["redact", "2", "--reason", "a password", "--yes"];
    succeeds(&fixture, &redact);
    assert_eq!(known(&fixture), Value::Null);
    is_sound(&fixture);
    // The same text is recorded again, and is the newest.
    succeeds(&fixture, &["cloud", "refresh"]);
    let newest = of_kind(&fixture, "inventory.recorded")[1];
    assert_eq!(known(&fixture)["seq"], newest);
    is_sound(&fixture);
    // An older one is of no matter to that.
    succeeds(&fixture, &redact);
    assert_eq!(known(&fixture)["seq"], newest);
    is_sound(&fixture);
}

#[test]
fn an_inventory_that_an_unfinished_operation_needs_stays() {
    let fixture = Fixture::story();
    let redact = ["redact", "2", "--reason", "a password", "--yes"];
    let run = fixture.run(&redact);
    assert_eq!(run.code, 5, "{}{}", run.stdout, run.stderr);
    let list = ["op", "list", "--unfinished", "--format", "json"];
    let open = json(&succeeds(&fixture, &list));
    let open = open.as_array().unwrap()[0]["short"].as_str().unwrap();
    assert!(run.stderr.contains(open), "{}", run.stderr);
    assert!(run.stderr.contains("needs it"), "{}", run.stderr);
    assert_eq!(of_kind(&fixture, "erasure.announced"), Vec::<u64>::new());
    is_sound(&fixture);
}

#[test]
fn what_explains_an_erasure_may_come_behind_what_is_verified() {
    let fixture = Fixture::story();
    let seq = of_kind(&fixture, "output.captured")[0];
    let (end, before) = (of_kind(&fixture, "step").pop().unwrap(), seq - 1);
    let text = seq.to_string();
    let redact = ["redact", &text, "--reason", "it was printed", "--yes"];
    succeeds(&fixture, &redact);
    for to in [before, seq, seq + 1, end] {
        let run = succeeds(&fixture, &["verify", "--to", &to.to_string()]);
        assert!(run.stdout.contains("verify: ok at event "));
        let run = fixture.run(&["verify", "--to", &to.to_string(), "--format", "json"]);
        let verified = json(&run);
        assert_eq!(verified["head"]["seq"], to);
        assert_eq!(verified["checks"]["records"], to);
        assert_eq!(verified["erased"], u64::from(to >= seq));
    }
    // Nothing announced it: the same zeros are damage, wherever one stops.
    let other = Fixture::story();
    assert!(half_erase(&other, seq, usize::MAX));
    let run = other.run(&["verify", "--to", &end.to_string()]);
    assert_eq!(run.code, 4, "{}", run.stdout);
}

/// Overwrites so many bytes of salt and payload of an event in the only segment; whether they are others now.
fn half_erase(fixture: &Fixture, seq: u64, bytes: usize) -> bool {
    let path = fixture.store().join("journal/00000000000000000001.seg");
    let mut content = std::fs::read(&path).unwrap();
    let mut at = segment::LEN;
    let body = loop {
        let frame = Frame::read(&content[at..]).unwrap();
        if frame.header().unwrap().seq == Seq(seq) {
            let start = at + PREFIX_LEN + frame.header_bytes.len();
            break start..start + frame.salt.len() + frame.payload.len();
        }
        at += frame.len();
    };
    let end = body.end.min(body.start.saturating_add(bytes));
    let begun = &mut content[body.start..end];
    // Salts are drawn: one may begin with what it is overwritten with.
    let differs = begun.iter().any(|byte| *byte != 0);
    begun.fill(0);
    std::fs::write(&path, content).unwrap();
    differs
}

fn announce(fixture: &Fixture, seq: u64) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let log = Log::open(&fixture.store(), Open::Existing, |_| {})
            .await
            .unwrap();
        let announced = ErasureAnnounced {
            cause: ErasureCause::Redaction,
            reason: "it was printed".to_owned(),
            events: vec![SeqRange {
                first: Seq(seq),
                last: Seq(seq),
            }],
        };
        append(&log, announced).await;
        log.close().await;
    });
}

async fn append(log: &Log, event: impl Into<Event>) {
    let draft = Draft::new(Subject::Cloud, event).unwrap();
    log.append(vec![draft], Condition::none()).await.unwrap();
}

/// Power was lost while a payload was being overwritten: that is no damage, and what can't be checked is said.
#[test]
fn an_erasure_that_was_cut_off_is_reported_and_no_damage() {
    for bytes in [1, 20, 32, 40] {
        let fixture = loop {
            let fixture = Fixture::story();
            let seq = of_kind(&fixture, "output.captured")[0];
            announce(&fixture, seq);
            if half_erase(&fixture, seq, bytes) {
                break fixture;
            }
        };
        for arguments in [&["verify", "--quick"][..], &["verify"]] {
            let run = fixture.run(arguments);
            let wrong = format!("{bytes} {arguments:?}: {}{}", run.stdout, run.stderr);
            assert!([0, 1].contains(&run.code), "{wrong}");
            assert!(
                run.stdout.contains("1 payloads are being erased"),
                "{wrong}"
            );
            assert!(!run.stdout.contains("log recover"), "{wrong}");
            if run.code == 1 {
                assert!(
                    run.stdout.contains("the store was not checked: "),
                    "{wrong}"
                );
            }
        }
        succeeds(&fixture, &["state"]);
        is_sound(&fixture);
    }
}

/// What the holder of the store erases while others read it.
#[test]
fn verify_beside_an_erasure_finds_nothing() {
    let fixture = Fixture::story();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let log = runtime.block_on(Log::open(&fixture.store(), Open::Existing, |_| {}));
    let log = log.unwrap();
    let busy = std::thread::spawn({
        let log = log.clone();
        let captured = Captured {
            command: "true".to_owned(),
            exit: Some(0),
            text: Blob(vec![b'x'; 200_000]),
            dropped_bytes: 0,
        };
        move || {
            runtime.block_on(async {
                for _ in 0..40 {
                    let output = OutputCaptured {
                        captured: captured.clone(),
                    };
                    append(&log, output).await;
                    let newest = log.head().await.unwrap().seq;
                    let one = std::collections::BTreeSet::from([newest]);
                    log.erase(&one, ErasureCause::Redaction, "").await.unwrap();
                }
                log.close().await;
            });
        }
    });
    while !busy.is_finished() {
        let run = fixture.run(&["verify", "--journal-only"]);
        assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
    }
    busy.join().unwrap();
    drop(log);
    is_sound(&fixture);
}
