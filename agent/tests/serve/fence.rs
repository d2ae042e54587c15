//! Who may act: whoever shows that its log has what this host was shown last.

use tallybook_agent::protocol::{Reply, Request, SessionRequest};
use tallybook_events::ids::{Blob, Epoch, Generation, OperationId, Seq};
use tallybook_events::record::header_hash;
use tallybook_events::step::{FailureClass, Mark, SendSource};

use crate::host::{Agent, Deed, Host, act, batch, header, key, run, run_later, shown};

fn mark(epoch: u32, seq: u64, way: u8) -> Mark {
    Mark {
        epoch: Epoch(epoch),
        seq: Seq(seq),
        hash: header_hash(&header(epoch, seq, way)),
    }
}

fn prove(agent: &mut Agent, header: &[u8]) {
    agent.say(&Request::Proof(Blob(header.to_vec())));
}

/// A host on which something was done under event 10 of epoch 2.
fn used() -> Host {
    let host = Host::new();
    let mut agent = host.agent();
    agent.run(vec![host.note(0, "a")]);
    agent.finished();
    agent.unstarted();
    host
}

#[test]
fn an_older_epoch_is_refused() {
    let host = used();
    let mut agent = host.agent();
    let mut older = batch(vec![host.note(1, "never")]);
    older.fence.epoch = Epoch(1);
    agent.say(&run(older));
    assert_eq!(agent.hear(), Reply::Prove(mark(2, 10, 0)));
    prove(&mut agent, &[]);
    assert_eq!(agent.refused().class, FailureClass::Fenced);
    assert!(!agent.end());
    assert_eq!(host.notes(), ["a"]);
    assert_eq!(host.phase(1), None);
}

#[test]
fn a_log_that_lacks_what_was_shown_is_refused_and_one_that_has_it_goes_on() {
    let host = used();
    let asks = |newest| Request::Run {
        shown: shown(newest),
        batch: batch(vec![host.note(1, "b")]),
    };
    // Of a line that parted before event 10; an event of its own is no proof.
    let mut agent = host.agent();
    agent.say(&asks(header(2, 12, 1)));
    assert_eq!(agent.hear(), Reply::Prove(mark(2, 10, 0)));
    prove(&mut agent, &header(2, 10, 1));
    let refused = agent.refused();
    assert_eq!(refused.class, FailureClass::Fenced);
    assert!(refused.message.contains("event 10"), "{}", refused.message);
    assert_eq!(host.notes(), ["a"]);
    // The same line, further on.
    let mut agent = host.agent();
    agent.say(&asks(header(2, 12, 0)));
    assert_eq!(agent.hear(), Reply::Prove(mark(2, 10, 0)));
    prove(&mut agent, &header(2, 10, 0));
    agent.finished();
    assert_eq!(host.notes(), ["a", "b"]);
    // What it showed is what counts from here on, and is told at the beginning.
    assert_eq!(host.seen(), Some(mark(2, 12, 0)));
}

#[test]
fn who_says_what_it_has_with_its_request_is_not_asked() {
    let host = used();
    let mut agent = host.agent();
    agent.say(&run_later(batch(vec![host.note(1, "b")])));
    assert_eq!(agent.hear(), Reply::Started(key(1)));
}

#[test]
fn sessions_and_sending_pass_the_same_fence() {
    let host = used();
    let mut agent = host.agent();
    agent.say(&Request::Send {
        shown: shown(header(2, 12, 1)),
        source: SendSource::Template {
            template: "web".parse().unwrap(),
            generation: Generation(1),
        },
    });
    assert_eq!(agent.hear(), Reply::Prove(mark(2, 10, 0)));
    prove(&mut agent, &header(2, 10, 1));
    assert_eq!(agent.refused().class, FailureClass::Fenced);
    let mut agent = host.agent();
    agent.say(&Request::Session {
        shown: shown(header(2, 12, 1)),
        request: SessionRequest {
            container: "web".parse().unwrap(),
            argv: Vec::new(),
            terminal: None,
            term: String::new(),
        },
    });
    assert_eq!(agent.hear(), Reply::Prove(mark(2, 10, 0)));
    prove(&mut agent, &header(2, 10, 1));
    assert_eq!(agent.refused().class, FailureClass::Fenced);
}

/// Another operation acts under event 12, which is behind event 10.
fn act_meanwhile(host: &Host) {
    let mut other = host.agent();
    let mut of_other = batch(vec![host.note(0, "other")]);
    of_other.calls[0].key.operation = OperationId::from_bytes([5; 16]);
    other.say(&run_later(of_other));
    other.finished();
}

/// One that is asked to show event 12 between two steps of a batch.
fn asked_within_a_batch(host: &Host) -> Agent {
    let gate = host.layout.state.join("gate");
    let mut agent = host.agent();
    agent.run(vec![act(1, Deed::Await(gate.clone())), host.note(2, "b")]);
    assert_eq!(agent.hear(), Reply::Started(key(1)));
    act_meanwhile(host);
    std::fs::write(&gate, "").unwrap();
    agent.finished();
    assert_eq!(agent.hear(), Reply::Prove(mark(2, 12, 0)));
    agent
}

/// A controller that is paused, or cut off, in the middle of a batch: what another one did since, it does not know.
#[test]
fn somebody_else_who_acted_meanwhile_ends_a_batch() {
    let host = used();
    let mut agent = asked_within_a_batch(&host);
    prove(&mut agent, &header(2, 12, 1));
    assert_eq!(agent.refused().class, FailureClass::Fenced);
    assert_eq!(host.notes(), ["a", "other"]);
    assert_eq!(host.phase(2), None);
}

/// Another operation of the same log is no reason to end one.
#[test]
fn the_same_log_goes_on_beside_itself() {
    let host = used();
    let mut agent = asked_within_a_batch(&host);
    prove(&mut agent, &header(2, 12, 0));
    agent.finished();
    assert_eq!(host.notes(), ["a", "other", "b"]);
    assert_eq!(agent.unstarted(), Vec::<u32>::new());
}

/// When the line is gone nobody can show anything, and nothing more is begun.
#[test]
fn a_controller_that_is_gone_shows_nothing() {
    let host = used();
    let mut agent = host.agent();
    agent.say(&Request::Run {
        shown: shown(header(2, 12, 0)),
        batch: batch(vec![host.note(1, "b")]),
    });
    assert_eq!(agent.hear(), Reply::Prove(mark(2, 10, 0)));
    assert!(!agent.end());
    assert_eq!(host.notes(), ["a"]);
    assert_eq!(host.phase(1), None);
    assert_eq!(host.seen(), Some(mark(2, 10, 0)));
}
