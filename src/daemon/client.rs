//! The client's end: having an operation held, handing it over, following one, having one stopped.
//!
//! Nothing is carried out here, and a line that breaks says nothing of how an operation goes on: the log does.

use serde::Serialize;
use tallybook_events::ids::OperationId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::ending::Ending;
use super::protocol::{Ask, Picture, Purpose, Say, Then, WRITE_TIMEOUT};
use crate::cli::Report;
use crate::log::socket::wire;
use crate::log::{self, Log};

/// How many messages of the daemon may wait to be shown.
const HEARD_MAX: usize = 64;

/// Why the daemon did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log, or the way to its holder.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// It said no.
    #[error("{}", .0.error)]
    Refused(Box<Report>),
    /// The line to it ended.
    #[error("the daemon is gone, hangs, or has as many clients as it takes")]
    Lost,
}

/// What follows one that the daemon carries out.
#[derive(Debug)]
pub enum Event {
    /// A notice, as JSON.
    Told(String),
    /// So many notices were left out.
    Missed(u64),
    /// It was asked to stop.
    Stopping,
    /// It ended.
    Ended(Box<Ending>),
}

/// An operation that nobody else carries out: the daemon holds it, as long as this is kept.
#[must_use = "dropping it lets others carry the operation out"]
pub struct Held(UnixStream);

/// An operation that the daemon carries out.
pub struct Following {
    /// How far it was.
    pub picture: Picture,
    out: OwnedWriteHalf,
    heard: mpsc::Receiver<Result<Say, Error>>,
}

/// Has the daemon hold an operation. `None` where there is no daemon.
///
/// # Errors
/// When it is held by others, or the daemon takes nothing more.
pub async fn hold(
    log: &Log,
    operation: OperationId,
    besides: Option<OperationId>,
    purpose: Purpose,
) -> Result<Option<Held>, Error> {
    let Some(mut stream) = log.daemon().await? else {
        return Ok(None);
    };
    let ask = Ask::Hold {
        operation,
        besides,
        purpose,
    };
    say(&mut stream, &ask).await?;
    match answer(&mut stream).await? {
        Say::Held => Ok(Some(Held(stream))),
        other => Err(unexpected(other)),
    }
}

impl Held {
    /// The log has it: the daemon shall carry it out.
    ///
    /// # Errors
    /// When the daemon ends. Its next start then carries the operation out.
    pub async fn go(mut self) -> Result<Following, Error> {
        say(&mut self.0, &Then::Go).await?;
        match answer(&mut self.0).await? {
            Say::Taken(picture) => Ok(Following::new(picture, self.0)),
            other => Err(unexpected(other)),
        }
    }
}

/// Follows an operation. `None` where the daemon does not carry it out, or there is none.
///
/// # Errors
/// When the line to it ends.
pub async fn attach(log: &Log, operation: OperationId) -> Result<Option<Following>, Error> {
    let Some(mut stream) = log.daemon().await? else {
        return Ok(None);
    };
    say(&mut stream, &Ask::Attach(operation)).await?;
    match answer(&mut stream).await? {
        Say::Taken(picture) => Ok(Some(Following::new(picture, stream))),
        Say::Absent => Ok(None),
        other => Err(unexpected(other)),
    }
}

/// Has an operation end in good order. `false` where the daemon does not carry it out, or there is none.
///
/// # Errors
/// When that is not allowed.
pub async fn stop(log: &Log, operation: OperationId) -> Result<bool, Error> {
    let Some(mut stream) = log.daemon().await? else {
        return Ok(false);
    };
    say(&mut stream, &Ask::Stop(operation)).await?;
    match answer(&mut stream).await? {
        Say::Stopping => Ok(true),
        Say::Absent => Ok(false),
        other => Err(unexpected(other)),
    }
}

impl Following {
    fn new(picture: Picture, stream: UnixStream) -> Self {
        let (mut read, out) = stream.into_split();
        let (tell, heard) = mpsc::channel(HEARD_MAX);
        // By itself, so that nothing of a message is lost while its reader waits for something else as well.
        tokio::spawn(async move {
            loop {
                let said = hear(&mut read).await;
                let is_last = matches!(said, Err(_) | Ok(Say::Ended(_)));
                if tell.send(said).await.is_err() || is_last {
                    return;
                }
            }
        });
        Following {
            picture,
            out,
            heard,
        }
    }

    /// What happened next.
    ///
    /// # Errors
    /// When the line ends before the operation did.
    pub async fn next(&mut self) -> Result<Event, Error> {
        match self.heard.recv().await.unwrap_or(Err(Error::Lost))? {
            Say::Told(text) => Ok(Event::Told(text)),
            Say::Missed(count) => Ok(Event::Missed(count)),
            Say::Stopping => Ok(Event::Stopping),
            Say::Ended(ending) => Ok(Event::Ended(ending)),
            other => Err(unexpected(other)),
        }
    }

    /// Has it end in good order.
    ///
    /// # Errors
    /// When the line has ended.
    pub async fn stop(&mut self) -> Result<(), Error> {
        say(&mut self.out, &Then::Stop).await
    }
}

fn unexpected(said: Say) -> Error {
    match said {
        Say::Refused(report) => Error::Refused(Box::new(report)),
        Say::Held
        | Say::Absent
        | Say::Taken(_)
        | Say::Told(_)
        | Say::Missed(_)
        | Say::Stopping
        | Say::Ended(_) => log::Error::Holder("an answer to another question".to_owned()).into(),
    }
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), what: &impl Serialize) -> Result<(), Error> {
    let bytes = wire::encode(what)?;
    match timeout(WRITE_TIMEOUT, wire::write(stream, &bytes)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Error::Lost),
    }
}

/// What it says at once; it need not wait for anything.
async fn answer(stream: &mut UnixStream) -> Result<Say, Error> {
    let said = timeout(WRITE_TIMEOUT, hear(stream)).await;
    said.unwrap_or(Err(Error::Lost))
}

async fn hear(stream: &mut (impl AsyncRead + Unpin)) -> Result<Say, Error> {
    wire::read(stream).await.map_err(|_| Error::Lost)
}
