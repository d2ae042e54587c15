//! `tallybook daemon`.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::{Context, Error, Exit, act};
use crate::daemon::notify::Manager;
use crate::daemon::sockets::Group;
use crate::daemon::{self, Ended};
use crate::log::Open;
use crate::render::{Format, Output, count};

/// Hold the store, and carry operations out for those whose terminal may go
///
/// It runs in the foreground, for a service manager; SIGTERM ends it in good order. Commands find it by the store; those who can't read the store find it
/// by `--daemon DIR`, where their group may read or act.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook daemon\n  tallybook daemon --read-group audit --act-group ops"
)]
pub(super) struct Args {
    /// Where the sockets of the groups are [default: /run/tallybook for root, else
    /// $XDG_RUNTIME_DIR/tallybook]
    #[arg(long, value_name = "DIR")]
    socket_dir: Option<PathBuf>,
    /// Members of this group may read all of the log, and follow operations
    #[arg(long, value_name = "GROUP")]
    read_group: Option<String>,
    /// Members of this group may have all done that this daemon can do
    #[arg(long, value_name = "GROUP")]
    act_group: Option<String>,
    /// How many operations are carried out at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    at_once: u16,
    /// How long to wait before an operation is tried again that a host was away for; doubled each time, up to 32 times as
    /// long
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    retry_pause: Duration,
    /// How long running steps may take to end once it is told to end
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    drain_timeout: Duration,
}

/// What it serves, as JSON.
#[derive(Debug, Serialize)]
struct Serving {
    store: PathBuf,
    process: u32,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let store = context.store()?.to_owned();
        let group = |name: Option<String>| name.map(|name| Group::named(&name)).transpose();
        let options = daemon::Options {
            sockets: self.socket_dir.unwrap_or_else(socket_directory),
            readers: group(self.read_group).map_err(daemon::Error::from)?,
            actors: group(self.act_group).map_err(daemon::Error::from)?,
            at_once: self.at_once.into(),
            pause: self.retry_pause,
            drain: self.drain_timeout,
        };
        let manager = Manager::of_environment(|name| std::env::var_os(name));
        let log = context.open_log(Open::Create).await?;
        let work = act::work(log)?;
        let serving = || {
            // Nobody may look on.
            let _closed = match out.format() {
                Format::Json => out.json_line(&Serving {
                    process: std::process::id(),
                    store,
                }),
                Format::Table => out.line(format!("serves the store in {}", store.display())),
            };
            let _closed = out.flush();
        };
        let ended = daemon::serve(log, &options, &manager, work, serving).await?;
        match ended {
            Ended::Drained => Ok(Exit::Ok),
            Ended::Left(left) => {
                // Nothing waits from here on, and nothing is dropped.
                eprintln!(
                    "left as it was: {}; the next start finds out what became of that",
                    count(left, "operation")
                );
                std::process::exit(i32::from(Exit::Interrupted.code()));
            }
        }
    }
}

fn socket_directory() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/run/tallybook");
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    runtime.unwrap_or_default().join("tallybook")
}
