//! One store, several processes: claims are taken once, nothing acknowledged is lost or doubled when the holder is
//! killed, and whoever is left takes over.
//!
//! The other processes are this test's own binary, told by `TALLYBOOK_TEST_ROLE` what to do.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tallybook::log::{Condition, Draft, Error, Filter, Log, Open, Refusal, verify};
use tallybook_events::event::{OperationIntended, OperationResumed, OutputCaptured};
use tallybook_events::header::ClaimRef;
use tallybook_events::ids::{Blob, EventId, OperationId, Seq};
use tallybook_events::intent::Intent;
use tallybook_events::step::Captured;
use tallybook_events::subject::Subject;
use tallybook_testkit::samples;

const ROLE: &str = "TALLYBOOK_TEST_ROLE";
const STORE: &str = "TALLYBOOK_TEST_STORE";

async fn create(store: &Path) -> Log {
    Log::open(store, Open::Create, |_| {}).await.unwrap()
}

fn subject(name: &str) -> Subject {
    Subject::Container(samples::host("cn1"), samples::container(name))
}

fn plain(name: &str) -> Draft {
    printed(name, 0)
}

fn printed(name: &str, len: usize) -> Draft {
    let captured = Captured {
        command: "true".to_owned(),
        exit: Some(0),
        text: Blob(vec![b'x'; len]),
        dropped_bytes: 0,
    };
    Draft::new(subject(name), OutputCaptured { captured }).unwrap()
}

fn intended(id: OperationId, claims: Vec<Subject>) -> Draft {
    let intended = OperationIntended {
        intent: Intent::HostPrepare { hosts: vec![] },
        inventory: Seq::NONE,
        claims,
    };
    Draft::new(Subject::Cloud, intended)
        .unwrap()
        .operation(id, None)
}

/// A child process in a role; its standard output is what it reports.
fn child(role: &str, store: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "in_a_role", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(STORE, store)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The lines that a child reports, without those of the test harness.
fn reports(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines
        .map_while(Result::ok)
        .filter_map(|line| line.split_once("REPORT ").map(|(_, what)| what.to_owned()))
}

fn report(what: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\nREPORT {what}").unwrap();
    out.flush().unwrap();
}

/// What the children do. Without a role it only shows that the variables are not set by accident.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_role() {
    let Some(role) = std::env::var_os(ROLE) else {
        assert!(std::env::var_os(STORE).is_none());
        return;
    };
    let store = std::env::var_os(STORE).unwrap();
    let log = create(Path::new(&store)).await;
    match role.to_str().unwrap() {
        "hold" => {
            assert!(log.is_holder().await);
            report("holding");
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).unwrap();
            log.close().await;
            report("closed");
        }
        "append" => {
            for number in 0..60 {
                let draft = plain(&format!("c{}", number % 3));
                let twin = Draft {
                    event: tallybook::clock::event_id(),
                    ..draft.clone()
                };
                let ids = [draft.event, twin.event];
                let places = log
                    .append(vec![draft, twin], Condition::none())
                    .await
                    .unwrap();
                for (id, place) in ids.iter().zip(places) {
                    report(&format!("{id} {}", place.seq));
                }
            }
            log.close().await;
        }
        "claim" => {
            for number in 0..30 {
                let wanted = subject(&format!("n{number}"));
                let id = tallybook::clock::operation_id();
                let condition = Condition {
                    unclaimed: Some((vec![wanted.clone()], Vec::new())),
                    ..Condition::default()
                };
                match log
                    .append(vec![intended(id, vec![wanted])], condition)
                    .await
                {
                    Ok(_) => report(&format!("won {number}")),
                    Err(Error::Refused(Refusal::Claimed { .. })) => {
                        report(&format!("lost {number}"))
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
            log.close().await;
        }
        "count" => {
            // Compare and swap on one subject: read, then append if nothing came in between.
            let mut done = 0;
            while done < 20 {
                let seen = log.head().await.unwrap().seq;
                let condition = Condition {
                    unchanged: Some((vec![subject("counter")], seen)),
                    ..Condition::default()
                };
                match log.append(vec![plain("counter")], condition).await {
                    Ok(appended) => {
                        done += 1;
                        report(&format!("{seen} {}", appended[0].seq));
                    }
                    Err(Error::Refused(Refusal::Changed { .. })) => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
            log.close().await;
        }
        other => panic!("{other:?} is no role"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_share_syncs_and_keep_their_order() {
    let store = tempfile::tempdir().unwrap();
    let log = create(store.path()).await;
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let log = log.clone();
            tokio::spawn(async move {
                let mut last = Seq::NONE;
                for _ in 0..8 {
                    let drafts = vec![plain(&format!("t{task}")), plain("all")];
                    let appended = log.append(drafts, Condition::none()).await.unwrap();
                    assert!(appended[0].seq > last && appended[1].seq == appended[0].seq.next());
                    last = appended[1].seq;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(log.head().await.unwrap().seq, Seq(1 + 64 * 8 * 2));
    log.close().await;
    assert_eq!(verify::journal(store.path()).unwrap().0.findings.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_that_comes_twice_is_appended_once() {
    let store = tempfile::tempdir().unwrap();
    let log = create(store.path()).await;
    let drafts = vec![plain("a"), plain("b")];
    // At once, so that the writer meets both in one batch; and again afterwards, and after a new start.
    let twice: Vec<_> = (0..16)
        .map(|_| {
            let (log, drafts) = (log.clone(), drafts.clone());
            tokio::spawn(async move { log.append(drafts, Condition::none()).await.unwrap() })
        })
        .collect();
    let mut places = Vec::new();
    for task in twice {
        places.push(task.await.unwrap());
    }
    assert!(places.iter().all(|place| *place == places[0]), "{places:?}");
    log.close().await;
    let log = create(store.path()).await;
    assert_eq!(
        log.append(drafts.clone(), Condition::none()).await.unwrap(),
        places[0]
    );
    assert_eq!(log.head().await.unwrap().seq, Seq(3));
    let part = vec![drafts[0].clone(), plain("c")];
    let refused =
        |result: Result<_, Error>| matches!(result, Err(Error::Refused(Refusal::Malformed(_))));
    assert!(
        refused(log.append(part, Condition::none()).await),
        "part of it is there already"
    );
    let same = vec![plain("d"); 2];
    assert!(
        refused(log.append(same, Condition::none()).await),
        "one id twice"
    );
    assert_eq!(log.append(vec![], Condition::none()).await.unwrap(), vec![]);
    assert_eq!(log.head().await.unwrap().seq, Seq(3));
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_takes_the_claim_over() {
    let store = tempfile::tempdir().unwrap();
    let log = create(store.path()).await;
    let (first, second) = (
        tallybook::clock::operation_id(),
        tallybook::clock::operation_id(),
    );
    let at = log
        .append(
            vec![intended(first, vec![subject("web")])],
            Condition::none(),
        )
        .await
        .unwrap()[0];
    let claim = ClaimRef {
        seq: at.seq,
        hash: at.hash,
    };
    let resumed = || {
        Draft::new(subject("web"), OperationResumed {})
            .unwrap()
            .operation(first, Some(claim))
    };
    log.append(vec![resumed()], Condition::held(first, claim))
        .await
        .unwrap();
    let mut rollback = intended(second, vec![subject("web")]);
    rollback.payload = Blob(
        tallybook_events::codec::encode(&OperationIntended {
            intent: Intent::Rollback { operation: first },
            inventory: Seq::NONE,
            claims: vec![subject("web")],
        })
        .unwrap(),
    );
    let condition = Condition {
        unclaimed: Some((vec![subject("web")], vec![first])),
        ..Condition::default()
    };
    log.append(vec![rollback], condition).await.unwrap();
    let stale = log
        .append(vec![resumed()], Condition::held(first, claim))
        .await;
    assert!(
        matches!(stale, Err(Error::Refused(Refusal::ClaimLost(id))) if id == first),
        "{stale:?}"
    );
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_keeps_nobody_from_closing() {
    let store = tempfile::tempdir().unwrap();
    let log = create(store.path()).await;
    let client = create(store.path()).await;
    assert!(!client.is_holder().await);
    let head = log.head().await.unwrap().seq;
    let inside = tokio::spawn({
        let log = log.clone();
        async move { log.wait_beyond(head).await }
    });
    let outside = tokio::spawn(async move {
        client.wait_beyond(head).await.unwrap();
        client
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    tokio::time::timeout(Duration::from_secs(5), log.clone().close())
        .await
        .expect("close waits for nobody");
    // One of them has taken over; an event reaches both, whoever holds the store now.
    log.append(vec![plain("a")], Condition::none())
        .await
        .unwrap();
    let wait = Duration::from_secs(10);
    tokio::time::timeout(wait, inside)
        .await
        .expect("the follower inside")
        .unwrap()
        .unwrap();
    let client = tokio::time::timeout(wait, outside)
        .await
        .expect("the follower outside")
        .unwrap();
    client.close().await;
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_that_are_gone_or_many_do_not_block_appends() {
    let store = tempfile::tempdir().unwrap();
    let log = create(store.path()).await;
    let client = create(store.path()).await;
    let head = log.head().await.unwrap().seq;
    let follow = || {
        let client = client.clone();
        tokio::spawn(async move { client.wait_beyond(head).await })
    };
    for _ in 0..3 {
        let gone: Vec<_> = (0..90).map(|_| follow()).collect();
        tokio::time::sleep(Duration::from_millis(200)).await;
        gone.iter().for_each(tokio::task::JoinHandle::abort);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let many: Vec<_> = (0..140).map(|_| follow()).collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let append = client.append(vec![plain("a")], Condition::none());
    tokio::time::timeout(Duration::from_secs(5), append)
        .await
        .expect("appends get through")
        .unwrap();
    let mut reached = 0;
    for task in many {
        reached += usize::from(task.await.unwrap().is_ok());
    }
    assert!((90..140).contains(&reached), "{reached}");
    drop(client);
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_larger_than_a_frame_reach_a_client() {
    let store = tempfile::tempdir().unwrap();
    let log = create(store.path()).await;
    let client = create(store.path()).await;
    for _ in 0..3 {
        let draft = printed("big", 3_000_000);
        client.append(vec![draft], Condition::none()).await.unwrap();
    }
    let records = client.records(&Filter::default()).await.unwrap();
    assert_eq!(records, log.records(&Filter::default()).await.unwrap());
    assert_eq!(records.len(), 4);
    log.close().await;
    client.close().await;
}

/// Whatever another version's requests and answers look like: it is told at once, by either end.
#[tokio::test(flavor = "multi_thread")]
async fn another_version_of_the_protocol_is_refused_at_once() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let store = tempfile::tempdir().unwrap();
    let log = create(store.path()).await;
    let client = create(store.path()).await;
    let socket = store.path().join("socket");
    let mut line = tokio::net::UnixStream::connect(&socket).await.unwrap();
    line.write_all(b"TBSK\xff\x7f").await.unwrap();
    let mut said = Vec::new();
    line.read_to_end(&mut said).await.unwrap();
    assert_eq!((said.len(), &said[..4]), (6, &b"TBSK"[..]), "{said:?}");

    // The other way round: somebody else answers where the holder did.
    std::fs::remove_file(&socket).unwrap();
    let other = tokio::net::UnixListener::bind(&socket).unwrap();
    let later = tokio::spawn(async move {
        let (mut line, _) = other.accept().await.unwrap();
        line.write_all(b"TBSK\xf0\x00").await.unwrap();
        let mut said = Vec::new();
        line.read_to_end(&mut said).await.unwrap();
        said
    });
    let refused = client.head().await;
    assert!(
        matches!(refused, Err(Error::OtherProtocol { theirs: 240, .. })),
        "{refused:?}"
    );
    assert_eq!(
        later.await.unwrap(),
        said,
        "nothing but the version is said"
    );
    client.close().await;
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_and_swaps_race_between_processes() {
    let store = tempfile::tempdir().unwrap();
    create(store.path()).await.close().await;
    let mut claimers: Vec<Child> = (0..3).map(|_| child("claim", store.path())).collect();
    let mut won = Vec::new();
    for claimer in &mut claimers {
        won.extend(
            reports(claimer).filter_map(|line| line.strip_prefix("won ").map(str::to_owned)),
        );
        assert!(claimer.wait().unwrap().success());
    }
    let distinct: BTreeSet<&String> = won.iter().collect();
    assert_eq!(
        (won.len(), distinct.len()),
        (30, 30),
        "each claim was won once: {won:?}"
    );

    let mut counters: Vec<Child> = (0..2).map(|_| child("count", store.path())).collect();
    let mut swaps: Vec<(u64, u64)> = Vec::new();
    for counter in &mut counters {
        swaps.extend(reports(counter).map(|line| {
            let (seen, at) = line.split_once(' ').unwrap();
            (seen.parse().unwrap(), at.parse().unwrap())
        }));
        assert!(counter.wait().unwrap().success());
    }
    swaps.sort_by_key(|(_, at)| *at);
    assert_eq!(swaps.len(), 40);
    for pair in swaps.windows(2) {
        assert!(
            pair[1].0 >= pair[0].1,
            "{pair:?}: the second did not know the first"
        );
    }
    assert_eq!(verify::journal(store.path()).unwrap().0.findings.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_holder_loses_and_doubles_nothing() {
    for delay_ms in [0, 15, 60] {
        let store = tempfile::tempdir().unwrap();
        let mut holder = child("hold", store.path());
        let mut held = reports(&mut holder);
        assert_eq!(held.next().as_deref(), Some("holding"));
        let mut clients: Vec<Child> = (0..3).map(|_| child("append", store.path())).collect();
        let mut first = reports(&mut clients[0]);
        let mut acknowledged: Vec<String> = first.next().into_iter().collect();
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        holder.kill().unwrap();
        holder.wait().unwrap();
        acknowledged.extend(first);
        for client in &mut clients[1..] {
            acknowledged.extend(reports(client));
        }
        for client in &mut clients {
            assert!(client.wait().unwrap().success(), "a client gave up");
        }
        let log = create(store.path()).await;
        let records = log.records(&Filter::default()).await.unwrap();
        assert_eq!(records.len(), 1 + 3 * 60 * 2, "every append is there once");
        assert_eq!(acknowledged.len(), 3 * 60 * 2);
        for line in acknowledged {
            let (id, seq) = line.split_once(' ').unwrap();
            let place: usize = seq.parse().unwrap();
            assert_eq!(
                records[place - 1].header.event,
                id.parse::<EventId>().unwrap()
            );
        }
        log.close().await;
        let (report, _) = verify::journal(store.path()).unwrap();
        // The drafts are steps without an operation: only the chain, the links and the payloads count here.
        assert_eq!(report.findings, vec![]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closing_holder_hands_over_without_a_rebuild() {
    let store = tempfile::tempdir().unwrap();
    for _ in 0..5 {
        let mut holder = child("hold", store.path());
        let mut held = reports(&mut holder);
        assert_eq!(held.next().as_deref(), Some("holding"));
        let (sender, notices) = std::sync::mpsc::channel();
        let log = Log::open(store.path(), Open::Existing, move |what| {
            drop(sender.send(what))
        })
        .await
        .unwrap();
        assert!(!log.is_holder().await);
        writeln!(holder.stdin.take().unwrap()).unwrap();
        while !log.is_holder().await {
            log.append(vec![plain("a")], Condition::none())
                .await
                .unwrap();
        }
        assert_eq!(held.next().as_deref(), Some("closed"));
        assert!(holder.wait().unwrap().success());
        assert_eq!(notices.try_iter().collect::<Vec<_>>(), Vec::<String>::new());
        log.close().await;
    }
}
