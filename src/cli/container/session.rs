//! The operator's side of a session in a container: a terminal, or plain pipes.
//!
//! Standard output is the command's alone. What is typed goes to the container and nowhere else.

use std::io::{Read, Write};

use rustix::termios::tcgetwinsize;
use serde::Serialize;
use tallybook_agent::protocol::SessionRequest;
use tallybook_events::ids::OperationId;
use tallybook_events::intent::Intent;
use tallybook_events::pace::Pace;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::super::terminal::{self, Terminal};
use super::super::{ContainerArgument, Context, Error, Exit, act, resolve};
use crate::cloud_log;
use crate::engine::session::{self, Ended, Input, Printer};
use crate::engine::{self, Proposal};
use crate::log::Open;
use crate::plan::container::{Known, Place};
use crate::render::progress::Progress;
use crate::render::{Format, Output};

/// How many chunks of input may wait.
const INPUT_QUEUE_LEN: usize = 16;

/// Runs a command, or a shell when there is none, and returns its exit status as ours.
pub(super) async fn run(
    context: &Context,
    out: &mut Output,
    argument: &ContainerArgument,
    argv: Vec<String>,
) -> Result<Exit, Error> {
    let loaded = context.load_inventory()?;
    let secrets = act::declared(&loaded)?;
    let log = context.open_log(Open::Existing).await?;
    let state = log.state().await?;
    let (host, container) = resolve::container(state.containers.keys(), argument, "in the log")?;
    let place = Place {
        host: &host,
        container: &container,
    };
    let known = Known {
        inventory: &loaded.inventory,
        state: &state,
    };
    known.present(place)?;
    let inventory = cloud_log::record_inventory(log, &loaded.path, &loaded.text).await?;
    let progress = Progress::aside(out.format());
    let id = engine::new_operation();
    let (holds, _held) = act::kept(log, id).await?;
    let engine = act::engine(log, act::fleet(&loaded.inventory)?, &progress, secrets).kept(holds);
    let size = terminal::size(argv.is_empty());
    let request = SessionRequest {
        container: container.clone(),
        argv: argv.clone(),
        terminal: size,
        term: std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned()),
    };
    let intent = if argv.is_empty() {
        Intent::ContainerShell {
            container: container.clone(),
            host: host.clone(),
        }
    } else {
        Intent::ContainerExec {
            container: container.clone(),
            host: host.clone(),
            argv,
        }
    };
    let proposal = Proposal {
        id,
        intent,
        inventory,
        // Several people may work in one container at once.
        claims: Vec::new(),
        steps: vec![session::plan(&host, &place.subject(), &request)],
        planned_at: Some(state.head.seq),
        alongside: None,
        instead_of: Vec::new(),
        pace: Pace::default(),
    };
    let mut terminal = None;
    let take_over = || {
        terminal = size.and_then(|_| Terminal::take());
        (read_input(size.is_some()), printer())
    };
    let ended = engine.session(proposal, request, take_over).await;
    drop(terminal);
    let ended = match ended {
        Ok(ended) => ended,
        Err(engine::Error::Log(source)) if engine.log().operation(id).await?.is_some() => {
            let source = Box::new(source);
            return Err(Error::Unrecorded { id, source });
        }
        Err(error) => return Err(error.into()),
    };
    match ended {
        Ended::Command(recorded) => {
            let exit = Exit::of_command(recorded.exit);
            if out.format() == Format::Json {
                tell(&SessionEnd {
                    operation: id,
                    outcome: "succeeded",
                    exit,
                    code: exit.code(),
                });
            }
            Ok(exit)
        }
        Ended::Failed(failure) => Err(Error::Session {
            container: format!("{host}/{container}"),
            message: failure.message,
            hint: failure.hint,
        }),
        Ended::Lost(error) => Err(engine::reach::Error::Conversation(error).into()),
        Ended::Unreachable(error) => Err(error.into()),
        Ended::Stopped => {
            eprintln!("stopped before anything was begun");
            Ok(Exit::Interrupted)
        }
    }
}

/// How a session ended, as JSON.
#[derive(Debug, Serialize)]
struct SessionEnd {
    operation: OperationId,
    outcome: &'static str,
    exit: Exit,
    code: u8,
}

/// On standard error: standard output is the command's.
fn tell(end: &SessionEnd) {
    if let Ok(line) = serde_json::to_string(end) {
        let _closed = writeln!(std::io::stderr(), "{line}");
    }
}

/// Reads standard input in a thread of its own: a read that nobody waits for any more must not hold up the end.
fn read_input(terminal: bool) -> mpsc::Receiver<Input> {
    let (sender, receiver) = mpsc::channel(INPUT_QUEUE_LEN);
    if terminal {
        let resized = sender.clone();
        tokio::spawn(async move {
            let Ok(mut changes) = signal(SignalKind::window_change()) else {
                return;
            };
            while changes.recv().await.is_some() {
                if let Ok(size) = tcgetwinsize(std::io::stdout()) {
                    let input = Input::Resize(size.ws_col, size.ws_row);
                    if resized.send(input).await.is_err() {
                        return;
                    }
                }
            }
        });
    }
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = [0; 16 * 1024];
        loop {
            let input = match stdin.read(&mut buffer) {
                Ok(0) | Err(_) => Input::End,
                Ok(count) => Input::Bytes(buffer[..count].to_vec()),
            };
            let end = matches!(input, Input::End);
            if sender.blocking_send(input).is_err() || end {
                return;
            }
        }
    });
    receiver
}

fn printer() -> Printer {
    Box::new(|bytes, stderr| {
        // A reader that went away does not end the command.
        let _closed = if stderr {
            std::io::stderr().write_all(bytes)
        } else {
            let mut stdout = std::io::stdout();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        };
    })
}
