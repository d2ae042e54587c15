//! The command line. A file a subcommand: its arguments, what it does, and how its result is shown.
//!
//! Nothing is decided here that is not about the command line; results go to standard output, everything else to
//! standard error. To add a command, write its file and add its `mod` and its row in `Command`.

mod act;
mod argument;
mod cloud;
mod complete;
mod completions;
mod confirmation;
mod container;
mod context;
mod daemon;
mod diff;
mod dns;
mod error;
mod exit;
mod history;
mod host;
mod init;
mod log;
mod man;
mod messages;
mod op;
mod redact;
mod replay;
mod resolve;
mod rollback;
mod show;
mod start;
mod state;
mod template;
mod terminal;
mod verify;
mod why;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::render::color::Color;
use crate::render::{Format, Output};
pub use argument::{ContainerArgument, EntityArgument, OperationArgument};
pub use context::{Context, Loaded};
pub use error::{Error, Report};
pub use exit::Exit;
pub use start::main;

/// Runs clouds of LXC containers, and keeps a log of every step that can be read, proved and undone.
#[derive(Debug, Parser)]
#[command(name = "tallybook", version, max_term_width = 100)]
#[command(after_help = "Exit codes are listed in docs/EXIT_CODES.md.")]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

/// The command line as clap knows it, for whoever checks what is written about it.
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// What every command takes.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of every command")]
struct Options {
    /// The log's directory [default: /var/lib/tallybook/store for root, else
    /// ~/.local/state/tallybook]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "TALLYBOOK_STORE",
        hide_env_values = true
    )]
    store: Option<PathBuf>,
    /// Ask the daemon whose sockets are in this directory, without using the store: for those who can't
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "TALLYBOOK_DAEMON",
        hide_env_values = true
    )]
    daemon: Option<PathBuf>,
    /// The inventory [default: cloud.toml here, then /etc/tallybook/cloud.toml]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "TALLYBOOK_INVENTORY",
        hide_env_values = true
    )]
    inventory: Option<PathBuf>,
    /// How results are written
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "table|json"
    )]
    format: Format,
    /// When to use colours; NO_COLOR is honoured
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "auto|always|never"
    )]
    color: Color,
    /// Show all at once. Else TALLYBOOK_PAGER, PAGER or less shows what commands that list or show have
    #[arg(long, global = true)]
    no_pager: bool,
    /// Say more on standard error: -v what is done, -vv how. TALLYBOOK_LOG chooses more finely
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// How messages on standard error are written
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "text|json"
    )]
    log_format: LogFormat,
}

/// How messages on standard error are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum LogFormat {
    /// Lines.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// The commands and the dispatch to each, from one table.
macro_rules! commands {
    ($($variant:ident($arguments:ty),)*) => {
        #[derive(Debug, clap::Subcommand)]
        enum Command {
            $($variant($arguments),)*
        }

        impl Command {
            async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
                match self {
                    $(Command::$variant(arguments) => arguments.run(context, out).await,)*
                }
            }
        }
    };
}
pub(crate) use commands;

commands! {
    Cloud(cloud::Args),
    Dns(dns::Args),
    Host(host::Args),
    Container(container::Args),
    Template(template::Args),
    Op(op::Args),
    Log(log::Args),
    Show(show::Args),
    State(state::Args),
    Diff(diff::Args),
    Why(why::Args),
    Verify(verify::Args),
    Rollback(rollback::Args),
    Redact(redact::Args),
    Replay(replay::Args),
    Daemon(daemon::Args),
    Init(init::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// A door for the fuzz targets (`tests/fuzz`): what names things on the command line. Nothing else may use it.
#[doc(hidden)]
pub mod fuzzing {
    use std::fmt::Display;
    use std::str::FromStr;

    use super::argument::{self, ContainerArgument, EntityArgument, OperationArgument, Point};

    /// A text as each sort of argument that it is, shown again where that sort can be.
    pub fn arguments(text: &str) -> Vec<String> {
        fn shown<T: FromStr + Display>(text: &str) -> Option<String> {
            text.parse::<T>().ok().map(|argument| argument.to_string())
        }
        let entity = text.parse::<EntityArgument>().ok();
        let point = text.parse::<Point>().ok().map(|_| text.to_owned());
        let seq = argument::seq(text).ok().map(|seq| seq.to_string());
        [
            shown::<ContainerArgument>(text),
            shown::<OperationArgument>(text),
            entity.map(|entity| entity.text),
            point,
            seq,
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
