//! The conversation as a controller sees it, over real pipes, with steps made for it.

mod fence;
mod full;
mod host;
mod secrets;

use std::fs;
use std::io::Write;
use std::thread::{self};
use std::time::Duration;
use tallybook_agent::lock;
use tallybook_agent::protocol::{
    Begun, PROTOCOL, Reply, Request, SendSource, read_frame, write_frame,
};
use tallybook_agent::receipts::{self, Journal};
use tallybook_agent::step::OutputOf;
use tallybook_events::ids::{Blob, Generation, LogId, OperationId, StepIndex};
use tallybook_events::step::{Action, FailureClass, Phase, Receipt, Seen, StepDone};

use host::*;

#[test]
fn a_batch_is_carried_out_in_order_with_receipts_and_outputs() {
    let host = Host::new();
    let mut agent = host.agent();
    let repeat = act(2, Deed::Repeat(OutputOf::step(StepIndex(1))));
    agent.run(vec![host.note(0, "a"), host.note(1, "b"), repeat]);
    for step in 0..3 {
        assert_eq!(agent.hear(), Reply::Started(key(step)));
        let Reply::Finished(receipt) = agent.hear() else {
            panic!()
        };
        assert_eq!(receipt.key, key(step));
        // What is told is what is on the disk by then.
        assert_eq!(host.phase(step).unwrap(), receipt.phase);
        let output: u8 = [1, 2, 2][step as usize];
        assert_eq!(done(&receipt.phase).output, Blob(vec![output]));
    }
    assert!(agent.unstarted().is_empty());
    assert_eq!(host.notes(), ["a", "b"]);
    assert!(agent.end());
    assert!(host.report().journal.is_some());
    let locks = fs::read_dir(host.layout.locks()).unwrap().count();
    assert_eq!(locks, 0, "all released");
}

#[test]
fn the_same_key_again_is_answered_from_its_receipt() {
    let host = Host::new();
    let mut agent = host.agent();
    agent.run(vec![host.note(0, "a"), act(1, Deed::Fail)]);
    let first = (agent.finished(), agent.finished());
    agent.unstarted();
    assert!(agent.end());
    // Another process, the same keys.
    let mut agent = host.agent();
    agent.run(vec![
        host.note(0, "a"),
        act(1, Deed::Fail),
        host.note(2, "c"),
    ]);
    assert!(matches!(agent.hear(), Reply::Finished(receipt) if receipt.phase == first.0));
    assert!(matches!(agent.hear(), Reply::Finished(receipt) if receipt.phase == first.1));
    assert_eq!(
        agent.unstarted(),
        [2],
        "a failure from a receipt stops as well"
    );
    assert_eq!(host.notes(), ["a"]);
    // An answer from a receipt feeds later steps.
    agent.run(vec![
        host.note(0, "a"),
        act(3, Deed::Repeat(OutputOf::step(StepIndex(0)))),
    ]);
    agent.finished();
    assert_eq!(done(&agent.finished()).output, Blob(vec![1]));
}

#[test]
fn a_start_without_an_end_is_repeated_unless_once() {
    let host = Host::new();
    let once = Once {
        note: Note {
            file: host.file("notes"),
            text: "once".to_owned(),
        },
    };
    for step in [0, 1] {
        begin(&host, step);
    }
    let mut agent = host.agent();
    agent.run(vec![host.note(0, "again")]);
    done(&agent.finished());
    agent.unstarted();
    agent.run(vec![host.note(2, "not even this"), call(1, &once)]);
    let refused = agent.refused();
    assert!(refused.message.contains("only once"), "{}", refused.message);
    assert_eq!(host.notes(), ["again"]);
    assert_eq!(host.phase(1), Some(Phase::Started), "still in doubt");
    assert_eq!(host.phase(2), None);
}

#[test]
fn the_first_failure_ends_it_and_says_what_ran() {
    let host = Host::new();
    let mut agent = host.agent();
    agent.run(vec![
        act(0, Deed::Fail),
        host.note(1, "never"),
        host.note(2, "never"),
    ]);
    let phase = agent.finished();
    let failure = failed(&phase);
    assert_eq!(failure.class, FailureClass::Host);
    assert_eq!(failure.message, "wrong: password=[removed]");
    assert_eq!(failure.captured[0].command, "echo 'said before'");
    assert_eq!(agent.unstarted(), [1, 2]);
    assert!(host.notes().is_empty());
    assert_eq!(host.phase(1), None);
}

#[test]
fn a_panic_is_a_failure_and_the_agent_goes_on() {
    let host = Host::new();
    let mut agent = host.agent();
    agent.run(vec![act(0, Deed::Panic), host.note(1, "never")]);
    let phase = agent.finished();
    assert_eq!(failed(&phase).class, FailureClass::Other);
    assert!(failed(&phase).message.ends_with("on purpose"));
    assert_eq!(host.phase(0), Some(phase));
    assert_eq!(agent.unstarted(), [1]);
    agent.run(vec![host.note(2, "after")]);
    done(&agent.finished());
}

#[test]
fn a_lost_line_lets_the_running_step_end_and_begins_no_other() {
    let host = Host::new();
    let mut agent = host.agent();
    let go = host.file("go");
    agent.run(vec![act(0, Deed::Await(go.clone())), host.note(1, "never")]);
    assert_eq!(agent.hear(), Reply::Started(key(0)));
    let Agent { to, from, thread } = agent;
    drop((to, from));
    thread::sleep(Duration::from_millis(100));
    assert_eq!(host.phase(0), Some(Phase::Started));
    // Meanwhile another agent that asks has to wait for the end.
    let mut other = host.agent();
    other.say(&receipts(&[]));
    thread::sleep(Duration::from_millis(200));
    fs::write(&go, "").unwrap();
    let Reply::Receipts(report) = other.hear() else {
        panic!()
    };
    assert!(report.journal.is_some());
    assert_eq!(report.receipts.len(), 1);
    done(&report.receipts[0].phase);
    thread.join().unwrap();
    assert_eq!(host.phase(1), None);
    assert!(host.notes().is_empty());
}

#[test]
fn stop_reaches_the_running_step_and_begins_no_other() {
    let host = Host::new();
    let mut agent = host.agent();
    agent.run(vec![act(0, Deed::Obey), host.note(1, "never")]);
    assert_eq!(agent.hear(), Reply::Started(key(0)));
    agent.say(&Request::Stop);
    assert_eq!(failed(&agent.finished()).class, FailureClass::Interrupted);
    assert_eq!(agent.unstarted(), [1]);
}

#[test]
fn an_undo_is_about_the_step_it_undoes() {
    let host = Host::new();
    let mut agent = host.agent();
    let mut undo = host.note(0, "");
    undo.key.operation = OperationId::from_bytes([7; 16]);
    undo.key.step = StepIndex(4);
    undo.action = Action::Undo {
        operation: OPERATION,
        step: StepIndex(3),
        output: Some(Blob(vec![5])),
    };
    agent.run(vec![undo]);
    done(&agent.finished());
    assert_eq!(host.notes(), ["undo true 3 Some(5)"]);
}

#[test]
fn what_does_not_fit_together_is_refused_before_anything_is_done() {
    let host = Host::new();
    let mut unknown = host.note(1, "x");
    unknown.kind = "test.none".to_owned();
    let mut other_operation = host.note(1, "x");
    other_operation.key.operation = OperationId::from_bytes([8; 16]);
    let mut other_log = host.note(1, "x");
    other_log.key.log = LogId::from_bytes([8; 16]);
    let mut other_fence = batch(vec![host.note(1, "x")]);
    other_fence.fence.log = LogId::from_bytes([8; 16]);
    for wrong in [
        batch(vec![host.note(0, "x"), unknown]),
        batch(vec![host.note(0, "x"), other_operation]),
        batch(vec![host.note(0, "x"), other_log]),
        other_fence,
    ] {
        let mut agent = host.agent();
        agent.say(&run(wrong));
        assert_eq!(agent.refused().class, FailureClass::Unknown);
    }
    assert!(host.notes().is_empty());
    assert!(!receipts::path(&host.layout, LOG).exists());
}

#[test]
fn parameters_that_can_not_be_read_fail_that_step() {
    let host = Host::new();
    let mut agent = host.agent();
    let mut call = host.note(0, "x");
    call.params = Blob(vec![0xff, 1, 2]);
    agent.run(vec![call]);
    assert_eq!(failed(&agent.finished()).class, FailureClass::Unknown);
}

#[test]
fn hello_comes_first_and_in_the_same_protocol() {
    let host = Host::new();
    let mut agent = host.stranger();
    agent.say(&Request::Stop);
    agent.say(&run(batch(vec![host.note(0, "x")])));
    assert_eq!(agent.refused().class, FailureClass::Unknown);
    let mut agent = host.stranger();
    agent.say(&Request::Hello {
        protocol: PROTOCOL + 1,
        log: LOG,
        host: "host1".parse().unwrap(),
    });
    let refused = agent.refused();
    let theirs = format!("protocol {}", PROTOCOL + 1);
    assert!(refused.message.contains(&theirs), "{}", refused.message);
    assert!(!agent.end());
    assert!(host.stranger().end(), "hanging up at once is fine");
}

#[test]
fn probes_tell_what_they_saw_and_leave_no_trace() {
    let host = Host::new();
    let mut agent = host.agent();
    agent.say(&Request::Probe(batch(vec![
        host.note(0, "x"),
        act(1, Deed::Panic),
        act(2, Deed::Fail),
    ])));
    let mut seen = Vec::new();
    for step in 0..3 {
        match agent.hear() {
            Reply::Probed { key: of, seen: it } if of == key(step) => seen.push(it),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen[0], Seen::Absent);
    assert!(matches!(&seen[1], Seen::Unknown { why } if why.contains("in a probe")));
    assert!(matches!(&seen[2], Seen::Unknown { why } if why == "can't look"));
    assert!(!host.layout.state.exists());
}

#[test]
fn receipts_of_a_host_that_never_acted_prove_nothing() {
    let host = Host::new();
    let mut agent = host.agent();
    agent.say(&receipts(&[]));
    let Reply::Receipts(report) = agent.hear() else {
        panic!()
    };
    assert!(report.journal.is_none() && report.receipts.is_empty());
}

#[test]
fn a_batch_waits_for_the_agent_that_still_works_on_the_operation() {
    let host = Host::new();
    let held = lock::operation(&host.layout, OPERATION, &mut || false).unwrap();
    let begun = begin(&host, 3);
    let mut agent = host.agent();
    agent.run(vec![host.note(0, "a")]);
    assert_eq!(agent.hear(), Reply::Waiting(Some(begun)), "and says so");
    assert!(host.notes().is_empty());
    drop(held);
    done(&agent.finished());
}

#[test]
fn a_question_for_receipts_waits_until_they_are_all_and_can_be_given_up() {
    let host = Host::new();
    let held = lock::operation(&host.layout, OPERATION, &mut || false).unwrap();
    let ask = || {
        let mut agent = host.agent();
        agent.say(&receipts(&[]));
        assert_eq!(agent.hear(), Reply::Waiting(None), "between two steps");
        agent
    };
    let (mut patient, mut stopped, gone) = (ask(), ask(), ask());
    stopped.say(&Request::Stop);
    assert_eq!(stopped.refused().class, FailureClass::Interrupted);
    gone.end();
    drop(held);
    let Reply::Receipts(report) = patient.hear() else {
        panic!()
    };
    assert!(report.receipts.is_empty());
}

#[test]
fn a_start_that_was_answered_for_as_not_begun_is_never_begun() {
    let host = Host::new();
    let mut agent = host.agent();
    agent.run(vec![host.note(0, "first")]);
    done(&agent.finished());
    agent.unstarted();
    let late = host.note(1, "late");
    for _ in 0..2 {
        let mut asking = host.agent();
        asking.say(&receipts(&[host.note(0, "first"), late.clone()]));
        let Reply::Receipts(report) = asking.hear() else {
            panic!()
        };
        let phases: Vec<_> = report.receipts.iter().map(|it| &it.phase).collect();
        assert!(
            matches!(phases[..], [Phase::Succeeded(_), Phase::GivenUp]),
            "{phases:?}"
        );
    }
    agent.run(vec![host.note(2, "not even this"), late]);
    assert!(agent.refused().message.contains("given up"));
    assert_eq!(host.notes(), ["first"]);
}

#[test]
fn what_a_stop_kept_from_being_begun_is_never_begun() {
    let host = Host::new();
    let calls = vec![act(0, Deed::Outlast), host.note(1, "never")];
    let mut agent = host.agent();
    agent.run(calls.clone());
    assert_eq!(agent.hear(), Reply::Started(key(0)));
    agent.say(&Request::Stop);
    done(&agent.finished());
    assert_eq!(agent.unstarted(), [1]);
    assert_eq!(host.phase(1), Some(Phase::GivenUp));
    // The same batch once more, which was held up on its way.
    let mut late = host.agent();
    late.run(calls);
    assert!(late.refused().message.contains("given up"));
    assert!(host.notes().is_empty());
}

#[test]
fn starts_are_given_up_only_for_who_shows_the_newest_line() {
    let host = Host::new();
    let mut newer = host.agent();
    newer.say(&run_shown(
        shown(header(2, 11, 0)),
        batch(vec![host.note(0, "newer")]),
    ));
    done(&newer.finished());
    let mut older = host.agent();
    older.say(&receipts(&[host.note(1, "a")]));
    let Reply::Prove(_) = older.hear() else {
        panic!()
    };
    older.say(&Request::Proof(Blob::default()));
    assert_eq!(older.refused().class, FailureClass::Fenced);
    assert_eq!(host.phase(1), None);
}

#[test]
fn a_start_that_comes_after_a_newer_one_is_not_begun() {
    let host = Host::new();
    let mut agent = host.agent();
    let mut newer = host.note(0, "newer");
    newer.key.attempt.0 = 2;
    agent.run(vec![newer]);
    done(&agent.finished());
    agent.unstarted();
    agent.run(vec![host.note(1, "not even this"), host.note(0, "late")]);
    let refused = agent.refused();
    assert!(
        refused
            .message
            .contains("start 1 of step 0 comes after its start 2"),
        "{}",
        refused.message
    );
    assert_eq!(host.notes(), ["newer"]);
    assert_eq!(host.phase(1), None);
}

#[test]
fn a_journal_is_made_on_demand_and_told_from_then_on() {
    let host = Host::new();
    let mut agent = host.stranger();
    assert_eq!(agent.greet(), None);
    assert!(!host.layout.state.exists(), "a greeting leaves no trace");
    agent.say(&Request::MakeJournal);
    let Reply::Journal(Some(made)) = agent.hear() else {
        panic!()
    };
    assert_eq!(host.report().journal, Some(made));
    assert_eq!(host.stranger().greet(), Some(made));
}

/// What another agent's receipt says of a step that it began.
fn begin(host: &Host, step: u32) -> Begun {
    let mut journal = Journal::open(&host.layout, LOG, &mut |_| {}).unwrap();
    let receipt = Receipt {
        key: key(step),
        fence: batch(Vec::new()).fence,
        kind: "test".to_owned(),
        boot: tallybook_events::ids::BootId::from_bytes([0; 16]),
        time_unix_us: 7,
        phase: Phase::Started,
    };
    journal.append(&receipt).unwrap();
    Begun {
        key: key(step),
        since_unix_us: 7,
    }
}

#[test]
fn programs_of_a_step_are_recorded() {
    let host = Host::new();
    let mut agent = host.agent();
    let argv = ["echo", "hello"].map(str::to_owned).to_vec();
    let wrong = ["sh", "-c", "echo why >&2; exit 4"]
        .map(str::to_owned)
        .to_vec();
    agent.run(vec![act(0, Deed::Run(argv)), act(1, Deed::Run(wrong))]);
    let phase = agent.finished();
    assert_eq!(done(&phase).captured[0].text.to_string(), "hello\n");
    let phase = agent.finished();
    let failure = failed(&phase);
    assert_eq!(failure.class, FailureClass::Command);
    assert!(
        failure.message.contains("status 4: why"),
        "{}",
        failure.message
    );
    assert_eq!(failure.captured[0].exit, Some(4));
}

#[test]
fn progress_is_thinned_and_the_last_is_told() {
    let host = Host::new();
    let mut agent = host.agent();
    agent.run(vec![act(0, Deed::Progress(100_000))]);
    let mut told = Vec::new();
    loop {
        match agent.hear() {
            Reply::Progress { done, .. } => told.push(done),
            Reply::Finished(_) => break,
            Reply::Started(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(told.len() < 50, "{}", told.len());
    assert_eq!(told.last(), Some(&100_000));
    assert!(told.is_sorted());
}

#[test]
fn a_peer_is_heard_in_order_and_with_back_pressure() {
    let host = Host::new();
    let mut agent = host.agent();
    agent.run(vec![act(0, Deed::Echo)]);
    assert_eq!(agent.hear(), Reply::Started(key(0)));
    // More than any queue holds: nothing is read back until all is written.
    let mut to = agent.to.take().unwrap();
    let writing = thread::spawn(move || {
        for number in 0..200_u8 {
            write_frame(&mut to, &Request::Peer(Blob(vec![number; 100_000]))).unwrap();
        }
        write_frame(&mut to, &Request::Peer(Blob(b"end".to_vec()))).unwrap();
        to
    });
    for number in 0..200_u8 {
        assert_eq!(agent.hear(), Reply::Peer(Blob(vec![number; 100_000])));
    }
    let to = writing.join().unwrap();
    done(&agent.finished());
    drop(to);
}

#[test]
fn a_lost_peer_or_line_fails_a_transfer() {
    let host = Host::new();
    let mut agent = host.agent();
    agent.run(vec![act(0, Deed::Echo)]);
    assert_eq!(agent.hear(), Reply::Started(key(0)));
    agent.say(&Request::PeerLost("cut".to_owned()));
    let phase = agent.finished();
    assert_eq!(failed(&phase).class, FailureClass::Peer);
    assert!(failed(&phase).message.contains("cut"));
    agent.unstarted();
    agent.run(vec![act(1, Deed::Echo)]);
    assert_eq!(agent.hear(), Reply::Started(key(1)));
    agent.end();
    assert_eq!(failed(&host.phase(1).unwrap()).class, FailureClass::Peer);
}

#[test]
fn trees_are_sent_through_the_same_link() {
    let host = Host::new();
    let mut agent = host.agent();
    let send = |source| Request::Send {
        shown: shown(header(1, 10, 0)),
        source,
    };
    agent.say(&send(SendSource::Template {
        template: "web".parse().unwrap(),
        generation: Generation(1),
    }));
    // What a peer says may arrive before the sending end listens; it waits until then.
    agent.say(&Request::Peer(Blob(b"which".to_vec())));
    assert_eq!(agent.hear(), Reply::Peer(Blob(b"which".to_vec())));
    assert_eq!(agent.hear(), Reply::Peer(Blob(b"web".to_vec())));
    assert_eq!(agent.hear(), Reply::SendEnded);
    agent.say(&send(SendSource::Staged {
        operation: OPERATION,
        step: StepIndex(0),
    }));
    agent.say(&Request::Peer(Blob(b"which".to_vec())));
    assert_eq!(agent.hear(), Reply::Peer(Blob(b"which".to_vec())));
    assert_eq!(agent.refused().class, FailureClass::Missing);
}

#[test]
fn a_full_journal_directory_refuses_before_the_step() {
    let host = Host::new();
    fs::create_dir_all(&host.layout.state).unwrap();
    fs::write(host.layout.state.join("receipts"), "in the way").unwrap();
    let mut agent = host.agent();
    agent.run(vec![host.note(0, "never")]);
    agent.refused();
    assert!(host.notes().is_empty());
}

#[test]
fn garbage_is_refused_and_never_a_panic() {
    let host = Host::new();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let hello = tallybook_agent::protocol::encode_frame(&Request::Hello {
        protocol: PROTOCOL,
        log: LOG,
        host: "host1".parse().unwrap(),
    });
    let run = run(batch(vec![host.note(0, "x")]));
    let run = tallybook_agent::protocol::encode_frame(&run).unwrap();
    let hello = hello.unwrap();
    for round in 0..150 {
        let mut bytes = hello.clone();
        if round % 3 == 0 {
            let len = random() as usize % 300;
            bytes.extend((0..len).map(|_| random() as u8));
        } else {
            let mut wrong = run.clone();
            for _ in 0..=random() % 4 {
                let at = random() as usize % wrong.len();
                wrong[at] = random() as u8;
            }
            wrong.truncate(wrong.len() - (random() as usize % 3) * 7);
            bytes.extend(wrong);
        }
        let mut agent = host.stranger();
        agent.to.as_mut().unwrap().write_all(&bytes).unwrap();
        // Whatever came of it: the other end hangs up, and the agent's thread ends without a panic.
        let mut from = agent.from.try_clone().unwrap();
        agent.end();
        while let Ok(Some(_)) = read_frame::<Reply>(&mut from) {}
    }
    until(|| fs::read_dir(host.layout.locks()).map_or(true, |it| it.count() == 0));
}

#[test]
fn a_frame_beyond_the_limit_is_refused() {
    let host = Host::new();
    let mut agent = host.agent();
    let to = agent.to.as_mut().unwrap();
    to.write_all(&u32::MAX.to_le_bytes()).unwrap();
    let refused = agent.refused();
    assert!(
        refused.message.contains("longer than"),
        "{}",
        refused.message
    );
}
