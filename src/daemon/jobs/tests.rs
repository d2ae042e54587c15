//! Operations side by side in the daemon, with work that is played.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::log::Open;

/// A store with a log in it, and nothing else.
async fn log(directory: &std::path::Path) -> Log {
    Log::open(&directory.join("store"), Open::Create, |_| {})
        .await
        .unwrap()
}

fn id(number: u8) -> OperationId {
    OperationId::from_bytes([number; 16])
}

fn done() -> Ending {
    Ran::Ended(Outcome::Succeeded).into()
}

async fn end(job: &Job) -> Ending {
    let mut ending = job.follow().ending;
    let ended = ending.wait_for(Option::is_some);
    // One that is never told is a failure, and not to be waited for.
    let ended = tokio::time::timeout(Duration::from_secs(60), ended).await;
    ended.expect("it never ends").unwrap().clone().unwrap()
}

#[tokio::test]
async fn one_that_breaks_is_told_and_the_others_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let (open, opened) = watch::channel(false);
    let work: Work = Arc::new(move |task: Task| {
        let mut opened = opened.clone();
        Box::pin(async move {
            assert!(task.operation != id(1), "the plan has no step 7");
            let _open = opened.wait_for(|open| *open).await;
            done()
        })
    });
    let jobs = Jobs::new(
        log(directory.path()).await,
        work,
        8,
        Duration::from_secs(30),
    );
    let second = jobs.submit(id(2), How::TakeUp, Vec::new()).unwrap();
    let first = jobs.submit(id(1), How::TakeUp, Vec::new()).unwrap();
    let Ran::Left(report) = end(&first).await.ran else {
        panic!("it did not break");
    };
    assert_eq!(report.because, ["the plan has no step 7"]);
    assert!(jobs.find(id(1)).is_none());
    assert!(jobs.find(id(2)).is_some());
    open.send_replace(true);
    assert_eq!(end(&second).await, done());
    jobs.done().await;
}

#[tokio::test]
async fn so_many_run_at_once_and_the_others_are_told_that_they_wait() {
    let directory = tempfile::tempdir().unwrap();
    let (open, opened) = watch::channel(false);
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, seen) = (Arc::clone(&running), Arc::clone(&most));
    let work: Work = Arc::new(move |_| {
        let mut opened = opened.clone();
        let (count, seen) = (Arc::clone(&count), Arc::clone(&seen));
        Box::pin(async move {
            seen.fetch_max(count.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let _open = opened.wait_for(|open| *open).await;
            count.fetch_sub(1, Ordering::SeqCst);
            done()
        })
    });
    let jobs = Jobs::new(
        log(directory.path()).await,
        work,
        2,
        Duration::from_secs(30),
    );
    let submit = |number| jobs.submit(id(number), How::TakeUp, Vec::new()).unwrap();
    let taken: Vec<_> = (1..=5).map(submit).collect();
    assert!(matches!(
        jobs.submit(id(1), How::TakeUp, Vec::new()),
        Err(Error::Running)
    ));
    // Three of them say that they wait.
    let waits = |job: &&Arc<Job>| job.follow().picture.running.contains_key(&None);
    while taken.iter().filter(waits).count() < 3 {
        tokio::task::yield_now().await;
    }
    open.send_replace(true);
    for job in &taken {
        assert_eq!(end(job).await, done());
    }
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn who_ends_takes_nothing_more_and_leaves_what_waits() {
    let directory = tempfile::tempdir().unwrap();
    let begun = Arc::new(Notify::new());
    let begins = Arc::clone(&begun);
    let work: Work = Arc::new(move |mut task: Task| {
        let begins = Arc::clone(&begins);
        Box::pin(async move {
            begins.notify_one();
            let _drained = task.service.drain.wait_for(|drain| *drain).await;
            done()
        })
    });
    let jobs = Jobs::new(
        log(directory.path()).await,
        work,
        1,
        Duration::from_secs(30),
    );
    let first = jobs.submit(id(1), How::TakeUp, Vec::new()).unwrap();
    begun.notified().await;
    let second = jobs.submit(id(2), How::TakeUp, Vec::new()).unwrap();
    jobs.drain();
    assert!(matches!(
        jobs.submit(id(3), How::TakeUp, Vec::new()),
        Err(Error::Ending)
    ));
    assert_eq!(end(&first).await, done());
    let left = end(&second).await;
    assert!(
        matches!(left.ran, Ran::Ended(Outcome::Interrupted(_))),
        "{left:?}"
    );
    jobs.done().await;
}

#[tokio::test]
async fn a_follower_that_does_not_keep_up_holds_up_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let told = NOTICES_MAX * 3;
    let work: Work = Arc::new(move |task: Task| {
        Box::pin(async move {
            for _ in 0..told {
                (task.watch)(&Notice::Stopping);
            }
            done()
        })
    });
    let jobs = Jobs::new(
        log(directory.path()).await,
        work,
        1,
        Duration::from_secs(30),
    );
    let job = jobs.submit(id(1), How::TakeUp, Vec::new()).unwrap();
    let mut slow = job.follow();
    // It reads nothing, and yet the operation ends.
    assert_eq!(end(&job).await, done());
    let missed = slow.notices.try_recv();
    assert!(
        matches!(missed, Err(broadcast::error::TryRecvError::Lagged(count)) if count as usize >= told - NOTICES_MAX - 1),
        "{missed:?}"
    );
}
