//! From the process to a command and back: arguments and environment in, an exit code out.
//!
//! With `messages`, the only place of the command line that reads the environment; but for `init`, which looks for the operator's
//! own key.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use clap_complete::CompleteEnv;

use super::context::{Context, Place};
use super::error::{Error, Report};
use super::exit::Exit;
use super::{Cli, Options, complete, messages};
use crate::render::pager::{Pager, Wishes};
use crate::render::{Format, Ink, Output};

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // Answers a shell that completes, and ends there.
    CompleteEnv::with_factory(|| complete::command(&arguments))
        .var(complete::ASKED_BY)
        .complete();
    let cli = match parse(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error, &arguments),
    };
    let options = &cli.options;
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colored = options.color.on(&std::io::stderr(), no_color);
    let format = options.format;
    let watched = messages::watch(options, colored);
    let result = watched.and_then(|()| run(cli, no_color));
    let report = match result {
        Ok(exit) => return exit.into(),
        Err(error) => error.report(),
    };
    show(&report, format, colored);
    report.exit.into()
}

fn parse(arguments: &[OsString]) -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches_from(arguments)?;
    Cli::from_arg_matches(&matches)
}

/// Shows what is wrong with the command line; or the help or the version, which clap hands over the same way.
fn refuse(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    let wants_json = arguments.iter().any(|argument| argument == "--format=json")
        || arguments
            .windows(2)
            .any(|pair| pair[0] == "--format" && pair[1] == "json");
    if error.use_stderr() && wants_json {
        let text = error.render().to_string();
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let first = lines.next().unwrap_or_default();
        let report = Report {
            error: first.strip_prefix("error: ").unwrap_or(first).to_owned(),
            details: lines.map(str::to_owned).collect(),
            because: Vec::new(),
            hint: None,
            exit: Exit::Usage,
            code: Exit::Usage.code(),
        };
        show(&report, Format::Json, false);
        return Exit::Usage.into();
    }
    let _closed = error.print();
    match error.use_stderr() {
        true => Exit::Usage.into(),
        false => Exit::Ok.into(),
    }
}

fn run(cli: Cli, no_color: bool) -> Result<Exit, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Error::Start)?;
    let pager = pager(&cli.options);
    let mut out = Output::stdout(cli.options.format, cli.options.color, no_color, pager);
    let context = context(cli.options);
    runtime.block_on(async {
        let result = cli.command.run(&context, &mut out).await;
        context.close().await;
        // Before an error is shown: it is not to be lost behind what is being read.
        let finished = out.finish();
        let exit = result?;
        finished?;
        Ok(exit)
    })
}

fn pager(options: &Options) -> Option<Pager> {
    let wishes = Wishes {
        named: std::env::var_os("TALLYBOOK_PAGER").or_else(|| std::env::var_os("PAGER")),
        less_is_told: std::env::var_os("LESS").is_some(),
        terminal: std::env::var_os("TERM"),
    };
    Pager::new(wishes).filter(|_| !options.no_pager)
}

/// Where the options say that the log and the inventory are.
pub(super) fn context(options: Options) -> Context {
    let place = match options.daemon {
        Some(sockets) => Place::Daemon(sockets),
        None => Place::Store(options.store.unwrap_or_else(default_store)),
    };
    Context::new(place, options.inventory, options.format)
}

/// Root's store is the machine's; anybody else's is their own.
fn default_store() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/tallybook/store");
    }
    let of = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let state = of("XDG_STATE_HOME").filter(|path| path.is_absolute());
    let state = state.or_else(|| of("HOME").map(|home| home.join(".local/state")));
    state.unwrap_or_default().join("tallybook")
}

fn show(report: &Report, format: Format, colored: bool) {
    use std::io::Write;
    let text = match format {
        Format::Table => {
            let text = report.text();
            match text.strip_prefix("error: ") {
                Some(rest) => format!("{}{rest}", Ink::Bad.paint("error: ", colored)),
                None => text,
            }
        }
        Format::Json => serde_json::to_string(report).unwrap_or_else(|_| report.text()),
    };
    let _closed = writeln!(std::io::stderr(), "{text}");
}
