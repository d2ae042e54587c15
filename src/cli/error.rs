//! Any error as people and programs see it: what happened, because of what, and what to do next.
//!
//! Every error has an exit code here; none is printed anywhere else.

mod of_log;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tallybook_agent::secret::SecretName;
use tallybook_events::ids::{OperationId, Seq};
use tallybook_events::name::HostName;

use super::exit::Exit;
use crate::cloud::{Diagnostics, allocate};
use crate::daemon::{self, client, sockets};
use crate::engine::adopt::Unfit;
use crate::engine::runner_lock;
use crate::render::{Unwritten, count, plain};
use crate::{cloud_log, engine, log, plan, secrets};
use of_log::{left_hint, log_exit, log_hint};

pub(super) use of_log::FENCED;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// The inventory and the log together.
    #[error(transparent)]
    CloudLog(#[from] cloud_log::Error),
    /// There is no plan.
    #[error(transparent)]
    Plan(#[from] plan::Error),
    /// An operation can't be begun or carried out.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// A host can't be reached, or there is no agent to send.
    #[error(transparent)]
    Reach(#[from] engine::reach::Error),
    /// Nobody takes an operation back.
    #[error("operation {} is not being taken back", .0.short())]
    NotTakenBack(OperationId),
    /// An operation is gone back to that is not done.
    #[error("operation {} is not done, so there is no state just after it", .0.short())]
    NotEnded(OperationId),
    /// What is to be taken back as one was done with inventories of which none has all hosts.
    #[error("no inventory that these operations ran with has all of their hosts: {0} is missing")]
    NoInventoryOfAll(HostName),
    /// A secret that a step needs can't be read.
    #[error(transparent)]
    Secret(#[from] secrets::Error),
    /// The inventory shows a secret that it declares.
    #[error("{}:{line}: the value of secret {name} is in the inventory, and that is recorded", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// The secret.
        name: SecretName,
    },
    /// The log failed while an operation was carried out: what it did so far may not be in it yet.
    #[error("operation {} was left where it is: the log failed", id.short())]
    Left {
        /// The operation.
        id: OperationId,
        /// How the log failed.
        source: Box<log::Error>,
    },
    /// A session could not be held to its end.
    #[error("the session in {container} failed: {message}")]
    Session {
        /// The container.
        container: String,
        /// What happened.
        message: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// The inventory that an operation ran with is not in the log.
    #[error("event {0} does not hold the inventory that the operation ran with")]
    InventoryLost(Seq),
    /// An undo is not undone.
    #[error("operation {} is a rollback, which can't be rolled back", .0.short())]
    RollbackOfRollback(OperationId),
    /// What somebody did in a container is not undone.
    #[error("operation {} was a session in a container, which can't be rolled back", .0.short())]
    RollbackOfSession(OperationId),
    /// Something of the operation can't be taken back.
    #[error("operation {} can't be rolled back: {summary}: {why}", id.short())]
    Irreversible {
        /// The operation.
        id: OperationId,
        /// The step.
        summary: String,
        /// Why not.
        why: String,
    },
    /// The inventory can't be compiled.
    #[error("the inventory can't be compiled")]
    Compile(#[from] allocate::Error),
    /// The inventory is wrong.
    #[error("{} has {}", path.display(), count(diagnostics.as_slice().len(), "mistake"))]
    Inventory {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        diagnostics: Diagnostics,
    },
    /// `--limit` is wrong.
    #[error("--limit can't be used")]
    Limit(Diagnostics),
    /// The inventory's file can't be read.
    #[error("can't read the inventory {}", path.display())]
    InventoryFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// There is no inventory in any of the usual places.
    #[error("there is no inventory: neither {} is there", list(.0))]
    NoInventory(Vec<PathBuf>),
    /// A first inventory was to be written where there is one.
    #[error("there is an inventory: {}", .0.display())]
    InventoryExists(PathBuf),
    /// A first inventory was to be written, of no host.
    #[error("an inventory needs a host, and there is no terminal to ask for one")]
    NoHosts,
    /// Something is needed for a first inventory that was not given.
    #[error("{0} was not given, and what this machine is called can't take its place")]
    NotGiven(&'static str),
    /// A host was given twice for a first inventory.
    #[error("host {:?} was given twice", .0.as_str())]
    GivenTwice(HostName),
    /// Whoever was asked left.
    #[error("a question was not answered; nothing was written")]
    Unanswered,
    /// A file holds no public key that can be used.
    #[error("can't take a public key from {}: {why}", path.display())]
    PublicKey {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A file can't be written.
    #[error("can't write {}", path.display())]
    Write {
        /// The file, or its directory.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Nothing of that name.
    #[error("there is no {what} {name:?}{}", place.as_deref().map(|place| format!(" {place}")).unwrap_or_default())]
    Unknown {
        /// What it should be: `container`, `host`, ….
        what: &'static str,
        /// The name as given.
        name: String,
        /// Where it was looked for: `in the log`, `on cn1`.
        place: Option<String>,
        /// The nearest name that is there.
        nearest: Option<String>,
        /// What else to do.
        hint: Option<&'static str>,
    },
    /// Several things of that name.
    #[error("{name:?} may mean any of {}", candidates.join(", "))]
    Ambiguous {
        /// The name as given.
        name: String,
        /// What it may mean, as each would be named.
        candidates: Vec<String>,
    },
    /// No event there.
    #[error("there is no event {seq}: the log ends at event {head}")]
    NoEvent {
        /// The position.
        seq: Seq,
        /// The newest event.
        head: Seq,
    },
    /// Standard output can't be written.
    #[error(transparent)]
    Output(#[from] Unwritten),
    /// The environment asks for messages in words that can't be understood.
    #[error("TALLYBOOK_LOG is {text:?}, which is no list of TARGET=LEVEL")]
    Messages {
        /// What it says.
        text: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The log failed while a session was recorded.
    #[error("operation {}: what was done in the container could not be recorded", id.short())]
    Unrecorded {
        /// The operation.
        id: OperationId,
        /// How the log failed.
        source: Box<log::Error>,
    },
    /// It has to be confirmed, and nobody can be asked.
    #[error("this has to be confirmed, and there is no terminal to ask at")]
    Unconfirmed,
    /// The daemon can't serve, or not any more.
    #[error(transparent)]
    Daemon(#[from] daemon::Error),
    /// The daemon did not do what was asked.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// What happened elsewhere, as it was told.
    #[error("{}", .0.error)]
    Told(Box<Report>),
    /// An operation is the daemon's, and it can't be followed.
    #[error("operation {} can't be followed any more", id.short())]
    Unfollowed {
        /// The operation.
        id: OperationId,
        /// Why not.
        source: Box<client::Error>,
    },
    /// It was to be left to a daemon, and there is none.
    #[error("no daemon serves the store, so nobody would carry it out")]
    NoDaemonToDetach,
    /// The daemon does not carry it out.
    #[error("the daemon does not carry out operation {}", .0.short())]
    NotCarriedOut(OperationId),
    /// Only a daemon is to be asked, and this needs the store itself.
    #[error("this needs the store itself, and only the daemon in {} is to be asked", .0.display())]
    StoreNeeded(PathBuf),
    /// A result has no form in JSON.
    #[error("the result can't be written as JSON")]
    Json(#[from] serde_json::Error),
    /// The program can't start its own machinery.
    #[error("can't start")]
    Start(#[source] std::io::Error),
}

impl Error {
    /// An operation is the daemon's, and it can't be followed.
    pub(super) fn unfollowed(id: OperationId, source: client::Error) -> Self {
        let source = Box::new(source);
        Error::Unfollowed { id, source }
    }

    /// The log failed while this operation was carried out.
    pub(super) fn left(id: OperationId, source: log::Error) -> Self {
        Error::Left {
            id,
            source: Box::new(source),
        }
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Error::Log(error) => log_exit(error),
            Error::Left { source, .. } | Error::Unrecorded { source, .. } => log_exit(source),
            Error::Messages { .. } => Exit::Usage,
            Error::CloudLog(error) => match error {
                cloud_log::Error::Log(error) => log_exit(error),
                cloud_log::Error::Compile(_) | cloud_log::Error::TooLarge { .. } => Exit::Usage,
                cloud_log::Error::Event(_) => Exit::Failed,
                cloud_log::Error::InventoryReplaced { .. } | cloud_log::Error::Contended(_) => {
                    Exit::Locked
                }
            },
            Error::Plan(error) => plan_exit(error),
            Error::Engine(error) => match error {
                engine::Error::Log(error) => log_exit(error),
                engine::Error::Missing(_) => Exit::Missing,
                engine::Error::Exposed(_) => Exit::Usage,
                engine::Error::RollingBack { .. } | engine::Error::Fenced { .. } => Exit::Locked,
                engine::Error::NoStore(_) => Exit::Permission,
                engine::Error::Runner(error) => match error {
                    runner_lock::Error::Held(_) => Exit::Locked,
                    runner_lock::Error::File { source, .. } => io_exit(source),
                },
                engine::Error::Final { .. }
                | engine::Error::Unplanned(_)
                | engine::Error::Unblocked(_)
                | engine::Error::Session(_) => Exit::Failed,
                engine::Error::Unfit(unfit) => match unfit {
                    Unfit::Missing(_) => Exit::Missing,
                    Unfit::Standing { .. } | Unfit::Undo(_) | Unfit::SetAside(_) | Unfit::None => {
                        Exit::Failed
                    }
                    Unfit::Refused(..) => Exit::Drift,
                    Unfit::Host { .. } => Exit::Unreachable,
                },
            },
            Error::Reach(error) => reach_exit(error),
            Error::Session { .. } | Error::Secret(_) => Exit::Failed,
            Error::Exposed { .. } => Exit::Usage,
            Error::InventoryLost(_) => Exit::Verification,
            Error::RollbackOfRollback(_)
            | Error::RollbackOfSession(_)
            | Error::NotTakenBack(_)
            | Error::NotEnded(_)
            | Error::NoInventoryOfAll(_)
            | Error::Irreversible { .. } => Exit::Failed,
            Error::Compile(_)
            | Error::Inventory { .. }
            | Error::Limit(_)
            | Error::InventoryFile { .. }
            | Error::NoInventory(_)
            | Error::NoHosts
            | Error::NotGiven(_)
            | Error::GivenTwice(_)
            | Error::Unanswered
            | Error::PublicKey { .. }
            | Error::Unconfirmed
            | Error::Ambiguous { .. } => Exit::Usage,
            Error::Unknown { .. } | Error::NoEvent { .. } => Exit::Missing,
            Error::InventoryExists(_) => Exit::Exists,
            Error::Json(_) => Exit::Failed,
            Error::Daemon(error) => match error {
                daemon::Error::Other(_) => Exit::Locked,
                daemon::Error::Log(error) => log_exit(error),
                daemon::Error::Socket(sockets::Error::Group(_)) => Exit::Usage,
                daemon::Error::Lock { source, .. }
                | daemon::Error::Socket(sockets::Error::File { source, .. })
                | daemon::Error::Signals(source) => io_exit(source),
            },
            Error::Client(error) => match error {
                client::Error::Log(error) => log_exit(error),
                client::Error::Refused(report) => report.exit,
                client::Error::Lost => Exit::Locked,
            },
            Error::Told(report) => report.exit,
            Error::Unfollowed { .. } => Exit::Interrupted,
            Error::NoDaemonToDetach => Exit::Usage,
            Error::NotCarriedOut(_) => Exit::Locked,
            Error::StoreNeeded(_) => Exit::Usage,
            Error::Output(Unwritten(error))
            | Error::Start(error)
            | Error::Write { source: error, .. } => io_exit(error),
        }
    }

    /// What to do next, where that is known.
    fn hint(&self) -> Option<String> {
        match self {
            Error::Log(error)
            | Error::CloudLog(cloud_log::Error::Log(error))
            | Error::Engine(engine::Error::Log(error)) => log_hint(error),
            Error::Left { id, source } => Some(left_hint(*id, source)),
            Error::Unrecorded { id, source } => Some(format!(
                "{}`tallybook op show {}` shows what is known",
                match source.is_disk_full() {
                    true => "free space where the store is; ",
                    false => "",
                },
                id.short()
            )),
            Error::Messages { .. } => Some(
                "for example `TALLYBOOK_LOG=debug` or `TALLYBOOK_LOG=tallybook::host=trace`"
                    .to_owned(),
            ),
            Error::Plan(error) => error.hint(),
            Error::Session { hint, .. } => hint.clone(),
            Error::Secret(error) => Some(error.hint()),
            Error::Engine(engine::Error::Exposed(name)) => Some(format!(
                "give it on standard input, or let the command read it; where {name} is a common word, choose another value"
            )),
            Error::Exposed { name, .. } => Some(format!(
                "take it out, and choose another value: this one was in a file that is no secret. An entry of `provision` \
                 with secrets = [\"{name}\"] finds it in the variable {}",
                name.variable()
            )),
            Error::Reach(error) => error.hint(),
            Error::Engine(engine::Error::NoStore(_)) => {
                Some("run it as the owner of the store".to_owned())
            }
            Error::Engine(engine::Error::Fenced { .. }) => Some(FENCED.to_owned()),
            Error::Engine(engine::Error::Missing(_)) => {
                Some("`tallybook op list --all` shows all".to_owned())
            }
            Error::Engine(engine::Error::Unplanned(id)) => {
                Some(format!("`tallybook op rollback {}` closes it", id.short()))
            }
            Error::Engine(engine::Error::Session(id) | engine::Error::Final { id, .. })
            | Error::RollbackOfRollback(id)
            | Error::RollbackOfSession(id) => Some(format!(
                "`tallybook op show {}` shows how it ended",
                id.short()
            )),
            Error::NotEnded(id) => Some(format!(
                "name an event, or end it: `tallybook op show {}` shows how",
                id.short()
            )),
            Error::NoInventoryOfAll(_) => Some(
                "take them back one by one with `tallybook op rollback`, the newest first"
                    .to_owned(),
            ),
            Error::Engine(engine::Error::Unblocked(id)) => Some(format!(
                "`tallybook op resume {}` looks first, and says what is",
                id.short()
            )),
            Error::Engine(engine::Error::Unfit(unfit)) => match unfit {
                Unfit::Refused(_, failure) => failure.hint.clone(),
                Unfit::Missing(_)
                | Unfit::Standing { .. }
                | Unfit::Undo(_)
                | Unfit::SetAside(_)
                | Unfit::None
                | Unfit::Host { .. } => {
                    Some("`tallybook op show` shows where each step stands".to_owned())
                }
            },
            Error::NotTakenBack(id) => {
                Some(format!("`tallybook op rollback {}` begins it", id.short()))
            }
            Error::Engine(engine::Error::RollingBack { by, .. }) => Some(format!(
                "`tallybook op resume {}` goes on with that, if nobody does",
                by.short()
            )),
            Error::Engine(engine::Error::Runner(error)) => match error {
                runner_lock::Error::Held(id) => Some(format!(
                    "wait for it, or stop it; `tallybook op show {}` shows how far it is",
                    id.short()
                )),
                runner_lock::Error::File { .. } => None,
            },
            Error::Irreversible { .. } | Error::InventoryLost(_) => None,
            Error::CloudLog(cloud_log::Error::Contended(_)) => {
                Some("try again when less is going on".to_owned())
            }
            Error::CloudLog(cloud_log::Error::InventoryReplaced { .. }) => {
                Some("agree on one inventory, then try again".to_owned())
            }
            Error::CloudLog(cloud_log::Error::Compile(_)) | Error::Compile(_) => Some(
                "change the inventory; `tallybook cloud show` shows what is recorded".to_owned(),
            ),
            Error::NoInventory(_) => Some(
                "`tallybook init` writes a first one (docs/CLOUD.md); or name it with --inventory or TALLYBOOK_INVENTORY"
                    .to_owned(),
            ),
            Error::InventoryFile { .. } => {
                Some("--inventory or TALLYBOOK_INVENTORY names another file".to_owned())
            }
            Error::InventoryExists(_) => {
                Some("edit that one, or name another file with --inventory".to_owned())
            }
            Error::NoHosts => Some("--host NAME=ADDRESS or --local gives one".to_owned()),
            Error::PublicKey { .. } => Some("--key names an id_*.pub file".to_owned()),
            Error::Unknown { nearest, hint, .. } => nearest
                .as_ref()
                .map(|nearest| format!("did you mean {nearest:?}?"))
                .or_else(|| hint.map(str::to_owned)),
            Error::Unconfirmed => {
                Some("--dry-run shows what would be done, --yes does it without asking".to_owned())
            }
            Error::Ambiguous { .. } => Some("write the one you mean".to_owned()),
            Error::Daemon(daemon::Error::Log(error)) | Error::Client(client::Error::Log(error)) => {
                log_hint(error)
            }
            Error::Client(client::Error::Refused(report)) | Error::Told(report) => {
                report.hint.clone()
            }
            Error::Client(client::Error::Lost) => Some("try again".to_owned()),
            Error::Unfollowed { id, .. } => Some(format!(
                "it is in the log, and the daemon goes on with it, also when it is started anew; `tallybook op attach {}` follows it",
                id.short()
            )),
            Error::NoDaemonToDetach => {
                Some("start one (`tallybook daemon`), or leave --detach out".to_owned())
            }
            Error::NotCarriedOut(id) => Some(format!(
                "`tallybook op show {}` shows how it stands",
                id.short()
            )),
            Error::StoreNeeded(_) => Some(
                "run it as the owner of the store, without --daemon and TALLYBOOK_DAEMON"
                    .to_owned(),
            ),
            Error::Daemon(daemon::Error::Other(_)) => {
                Some("end that one first, or name another store with --store".to_owned())
            }
            Error::Daemon(
                daemon::Error::Lock { .. } | daemon::Error::Socket(_) | daemon::Error::Signals(_),
            )
            | Error::Limit(_)
            | Error::Inventory { .. }
            | Error::NotGiven(_)
            | Error::GivenTwice(_)
            | Error::Unanswered
            | Error::Write { .. }
            | Error::NoEvent { .. }
            | Error::Output(_)
            | Error::Json(_)
            | Error::Start(_)
            | Error::CloudLog(cloud_log::Error::Event(_) | cloud_log::Error::TooLarge { .. }) => {
                None
            }
        }
    }

    /// What is wrong in detail, a line each.
    fn details(&self) -> Vec<String> {
        match self {
            Error::Inventory { diagnostics, .. } | Error::Limit(diagnostics) => diagnostics
                .as_slice()
                .iter()
                .map(ToString::to_string)
                .collect(),
            Error::Compile(error) => error.to_string().lines().map(str::to_owned).collect(),
            Error::Log(_)
            | Error::CloudLog(_)
            | Error::Plan(_)
            | Error::Engine(_)
            | Error::Reach(_)
            | Error::Secret(_)
            | Error::Exposed { .. }
            | Error::Session { .. }
            | Error::InventoryLost(_)
            | Error::RollbackOfRollback(_)
            | Error::RollbackOfSession(_)
            | Error::NotTakenBack(_)
            | Error::NotEnded(_)
            | Error::NoInventoryOfAll(_)
            | Error::Left { .. }
            | Error::Unrecorded { .. }
            | Error::Messages { .. }
            | Error::Irreversible { .. }
            | Error::InventoryFile { .. }
            | Error::Unconfirmed
            | Error::NoInventory(_)
            | Error::InventoryExists(_)
            | Error::NoHosts
            | Error::NotGiven(_)
            | Error::GivenTwice(_)
            | Error::Unanswered
            | Error::PublicKey { .. }
            | Error::Write { .. }
            | Error::Unknown { .. }
            | Error::Ambiguous { .. }
            | Error::NoEvent { .. }
            | Error::Daemon(_)
            | Error::Client(_)
            | Error::Told(_)
            | Error::Unfollowed { .. }
            | Error::NoDaemonToDetach
            | Error::NotCarriedOut(_)
            | Error::StoreNeeded(_)
            | Error::Output(_)
            | Error::Json(_)
            | Error::Start(_) => Vec::new(),
        }
    }

    /// As it is shown.
    pub fn report(&self) -> Report {
        if let Error::Told(report) | Error::Client(client::Error::Refused(report)) = self {
            return Report::clone(report);
        }
        let details = self.details();
        let mut because = Vec::new();
        let mut source = std::error::Error::source(self).filter(|_| details.is_empty());
        while let Some(cause) = source {
            because.push(cause.to_string());
            source = cause.source();
        }
        Report {
            error: self.to_string(),
            details,
            because,
            hint: self.hint(),
            exit: self.exit(),
            code: self.exit().code(),
        }
    }
}

/// An error as it is shown: text on standard error, or with `--format json` this object there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What happened.
    pub error: String,
    /// What is wrong, one by one, for an inventory or a limit.
    pub details: Vec<String>,
    /// Its causes, nearest first.
    pub because: Vec<String>,
    /// What to do next.
    pub hint: Option<String>,
    /// The exit code's name.
    pub exit: Exit,
    /// The exit code.
    pub code: u8,
}

impl Report {
    /// As text: `error: …`, then `  because: …` and `  hint: …`.
    pub fn text(&self) -> String {
        let mut lines = Vec::new();
        let mut add = |label: &str, text: &str| {
            let mut first = true;
            for line in text.lines() {
                let label = if first { label } else { "    " };
                lines.push(format!("{label}{}", plain(line)));
                first = false;
            }
        };
        add("error: ", &self.error);
        self.details.iter().for_each(|line| add("  ", line));
        self.because
            .iter()
            .for_each(|line| add("  because: ", line));
        self.hint.iter().for_each(|line| add("  hint: ", line));
        lines.join("\n")
    }
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(" nor ")
}

fn plan_exit(error: &plan::Error) -> Exit {
    match error {
        plan::Error::ContainerExists { .. } => Exit::Exists,
        plan::Error::HostUnknown(_)
        | plan::Error::ContainerUnknown { .. }
        | plan::Error::ContainerMissing { .. }
        | plan::Error::TemplateMissing { .. }
        | plan::Error::TemplateNowhere { .. } => Exit::Missing,
        plan::Error::NotAllocated { .. }
        | plan::Error::NotInstalled(_)
        | plan::Error::NotPrepared(_) => Exit::Failed,
        plan::Error::Value { .. }
        | plan::Error::NoAddress(_)
        | plan::Error::NoServerAddress { .. }
        | plan::Error::NoZones => Exit::Usage,
        plan::Error::Encode(_) | plan::Error::Record(_) => Exit::Failed,
    }
}

/// The exit code for a host that can't be reached.
pub(super) fn reach_exit(error: &engine::reach::Error) -> Exit {
    if error.is_identity() {
        return Exit::Identity;
    }
    if error.is_unreachable() {
        return Exit::Unreachable;
    }
    match error {
        engine::reach::Error::Unknown(_) | engine::reach::Error::Agent { .. } => Exit::Missing,
        engine::reach::Error::AgentChanged(_) => Exit::Verification,
        engine::reach::Error::Unshown { source, .. } => log_exit(source),
        engine::reach::Error::Host(_) | engine::reach::Error::Conversation(_) => Exit::Failed,
    }
}

fn io_exit(error: &std::io::Error) -> Exit {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Exit::DiskFull,
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests;
