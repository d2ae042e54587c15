//! One client's line: what it wants, whether it may, and what it is told.
//!
//! A line that ends changes nothing of what runs. What a client began in the log is carried out, whether it came to say so or not.

use std::sync::Arc;

use tallybook_events::ids::{OperationId, Seq};
use tallybook_replay::operation::OperationStatus;
use tokio::io::AsyncWrite;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::LAST_WORDS;
use super::ending::Ending;
use super::jobs::{self, Followed, How, Job, Jobs};
use super::protocol::{ASK_LEN_MAX, Ask, Purpose, Say, Then, WRITE_TIMEOUT};
use crate::cli::{self, Exit, Report};
use crate::engine;
use crate::engine::runner_lock::Hold;
use crate::log::socket::wire;
use crate::log::{Caller, Condition, Log, Right};

/// How many messages of a client may wait to be heard.
const HEARD_MAX: usize = 4;

/// The other end is gone, or does not take what it is told.
struct Gone;

/// A line, with what the client says on it coming in by itself.
struct Line {
    out: OwnedWriteHalf,
    heard: mpsc::Receiver<Then>,
}

/// Serves one line to its end.
pub(super) async fn serve(log: Log, jobs: Arc<Jobs>, stream: UnixStream, caller: Caller) {
    let (mut read, mut out) = stream.into_split();
    let asked = wire::read_within::<Ask>(&mut read, ASK_LEN_MAX);
    let Ok(Ok(ask)) = timeout(WRITE_TIMEOUT, asked).await else {
        return;
    };
    if caller.right < needed(&ask) {
        let _gone = say(&mut out, &Say::Refused(forbidden())).await;
        return;
    }
    let _gone = match ask {
        Ask::Hold {
            operation,
            besides,
            purpose,
        } => {
            let line = Line::new(read, out);
            keep(&log, &jobs, line, caller, (operation, besides), purpose).await
        }
        Ask::Attach(operation) => match jobs.find(operation) {
            Some(job) => {
                let line = Line::new(read, out);
                follow(line, &jobs, &job, caller).await
            }
            None => say(&mut out, &Say::Absent).await,
        },
        Ask::Stop(operation) => match jobs.find(operation) {
            Some(job) => {
                job.stop(caller.peer);
                say(&mut out, &Say::Stopping).await
            }
            None if jobs.stop_trying(operation) => say(&mut out, &Say::Stopping).await,
            None => say(&mut out, &Say::Absent).await,
        },
    };
}

/// What somebody must be allowed to ask this.
const fn needed(ask: &Ask) -> Right {
    match ask {
        Ask::Attach(_) => Right::Read,
        Ask::Hold { .. } | Ask::Stop(_) => Right::Act,
    }
}

async fn keep(
    log: &Log,
    jobs: &Arc<Jobs>,
    mut line: Line,
    caller: Caller,
    (operation, besides): (OperationId, Option<OperationId>),
    purpose: Purpose,
) -> Result<(), Gone> {
    let held = match jobs.drains() {
        true => Err(jobs::Error::Ending.report()),
        false => hold(log, jobs, operation, besides),
    };
    let holds = match held {
        Ok(holds) => holds,
        Err(report) => return say(&mut line.out, &Say::Refused(report)).await,
    };
    let before = last(log, operation).await;
    say(&mut line.out, &Say::Held).await?;
    let heard = line.heard.recv().await;
    if purpose == Purpose::Own {
        // Held until the line ended.
        return Ok(());
    }
    // What it began goes on, whether it says so or not; what the log has not from it does not.
    let is_begun = match heard {
        Some(Then::Go | Then::Stop) => is_begun(log, operation, before).await,
        // It died. What it was about to append may yet come.
        None => comes_to_be(log, operation, before).await,
    };
    match (is_begun, heard) {
        (true, _) => {}
        (false, Some(Then::Go)) => return say(&mut line.out, &Say::Refused(unbegun())).await,
        (false, Some(Then::Stop) | None) => return Ok(()),
    }
    let how = match purpose {
        Purpose::Run { undo_failed } => How::Run { undo_failed },
        Purpose::GoOn { once_again } => How::GoOn { once_again },
        Purpose::Own => return Ok(()),
    };
    let job = match jobs.submit(operation, how, holds) {
        Ok(job) => job,
        Err(error) => return say(&mut line.out, &Say::Refused(error.report())).await,
    };
    follow(line, jobs, &job, caller).await
}

/// The right to carry these out.
fn hold(
    log: &Log,
    jobs: &Jobs,
    operation: OperationId,
    besides: Option<OperationId>,
) -> Result<Vec<Hold>, Report> {
    let store = log.store();
    let store =
        store.ok_or_else(|| cli::Error::from(engine::Error::NoStore(operation)).report())?;
    let take = |id| {
        let taken = Hold::take(store, id).map_err(engine::Error::from);
        taken.map_err(|error| {
            let mut report = cli::Error::from(error).report();
            if jobs.find(id).is_some() {
                let short = id.short();
                report.hint = Some(format!(
                    "it is the daemon: `tallybook op attach {short}` follows it, `tallybook op stop {short}` stops it"
                ));
            }
            report
        })
    };
    std::iter::once(operation)
        .chain(besides)
        .map(take)
        .collect()
}

/// The newest event of an operation; none where there is none, or it is not known.
async fn last(log: &Log, id: OperationId) -> Seq {
    let known = log.summary(id).await.ok().flatten();
    known.map_or(Seq::NONE, |known| known.last)
}

/// Whether the log says that it is being carried out, by something that came behind that event.
async fn is_begun(log: &Log, id: OperationId, before: Seq) -> bool {
    let known = log.summary(id).await.ok().flatten();
    known.is_some_and(|it| it.status == OperationStatus::Running && it.last > before)
}

/// The same, of what may be on its way still: asked behind all that the log has been asked to take.
async fn comes_to_be(log: &Log, id: OperationId, before: Seq) -> bool {
    // With a condition it waits until what is being written is durable, and it always holds.
    let behind = Condition {
        unchanged: Some((Vec::new(), Seq::NONE)),
        ..Condition::none()
    };
    let _answered = log.append(Vec::new(), behind).await;
    is_begun(log, id, before).await
}

/// Tells how an operation goes on until it ends, or nobody listens any more.
async fn follow(mut line: Line, jobs: &Jobs, job: &Job, caller: Caller) -> Result<(), Gone> {
    let _telling = jobs.telling();
    let Followed {
        picture,
        mut notices,
        mut ending,
    } = job.follow();
    say(&mut line.out, &Say::Taken(picture)).await?;
    let ending = loop {
        tokio::select! {
            biased;
            heard = line.heard.recv() => match heard {
                Some(Then::Stop) if caller.right >= Right::Act => {
                    job.stop(caller.peer);
                    say(&mut line.out, &Say::Stopping).await?;
                }
                Some(Then::Stop) => say(&mut line.out, &Say::Refused(forbidden())).await?,
                Some(Then::Go) => {}
                None => return Err(Gone),
            },
            notice = notices.recv() => match notice {
                Ok(text) => say(&mut line.out, &Say::Told(text.to_string())).await?,
                Err(RecvError::Lagged(count)) => say(&mut line.out, &Say::Missed(count)).await?,
                // As long as there is the job, there may be more.
                Err(RecvError::Closed) => return Err(Gone),
            },
            ended = end(&mut ending) => break ended,
        }
    };
    // What was told before the end.
    loop {
        match notices.try_recv() {
            Ok(text) => say(&mut line.out, &Say::Told(text.to_string())).await?,
            Err(TryRecvError::Lagged(count)) => say(&mut line.out, &Say::Missed(count)).await?,
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
        }
    }
    let ending = ending.ok_or(Gone)?;
    say(&mut line.out, &Say::Ended(Box::new(ending))).await?;
    // Whoever was told has yet to ask the log, and ends the line then.
    let _asked = timeout(LAST_WORDS, line.heard.recv()).await;
    Ok(())
}

/// How it ended, once it did; `None` when that is never told.
async fn end(ending: &mut watch::Receiver<Option<Ending>>) -> Option<Ending> {
    let ended = ending.wait_for(Option::is_some).await;
    ended.ok().and_then(|ended| ended.clone())
}

impl Line {
    fn new(mut read: OwnedReadHalf, out: OwnedWriteHalf) -> Self {
        let (tell, heard) = mpsc::channel(HEARD_MAX);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    said = wire::read_within::<Then>(&mut read, ASK_LEN_MAX) => match said {
                        Ok(then) if tell.send(then).await.is_ok() => {}
                        Ok(_) | Err(_) => return,
                    },
                    // Nobody wants to hear it any more.
                    () = tell.closed() => return,
                }
            }
        });
        Line { out, heard }
    }
}

async fn say(out: &mut (impl AsyncWrite + Unpin), what: &Say) -> Result<(), Gone> {
    let bytes = wire::encode(what).map_err(|_| Gone)?;
    match timeout(WRITE_TIMEOUT, wire::write(out, &bytes)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Gone),
    }
}

fn unbegun() -> Report {
    Report {
        error: "the log does not say that this was begun or taken up".to_owned(),
        details: Vec::new(),
        because: Vec::new(),
        hint: None,
        exit: Exit::Failed,
        code: Exit::Failed.code(),
    }
}

fn forbidden() -> Report {
    Report {
        error: "you may read here, but not have anything done".to_owned(),
        details: Vec::new(),
        because: Vec::new(),
        hint: Some(
            "who may act is said where the daemon is started; `id` shows your groups".to_owned(),
        ),
        exit: Exit::Permission,
        code: Exit::Permission.code(),
    }
}
