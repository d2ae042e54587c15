//! The operator's side of a session in a container: a terminal in raw mode, or plain pipes.
//!
//! The terminal is put back however the session ends. What is typed goes to the container and nowhere else.

use std::io::{IsTerminal, Read, Write};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tallybook_agent::protocol::SessionRequest;
use tallybook_events::intent::Intent;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::super::{ContainerArgument, Context, Error, Exit, act, resolve};
use crate::cloud_log;
use crate::engine::session::{self, Ended, Input, Printer};
use crate::engine::{self, Proposal};
use crate::log::Open;
use crate::plan::container::{Known, Place};
use crate::render::Output;
use crate::render::progress::Progress;

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
    let size = terminal_size(argv.is_empty());
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
        id: engine::new_operation(),
        intent,
        inventory,
        // Several people may work in one container at once.
        claims: Vec::new(),
        steps: vec![session::plan(&host, &place.subject(), &request)],
        planned_at: state.head.seq,
        alongside: None,
        instead_of: None,
    };
    let progress = Progress::new(out.format());
    let engine = act::engine(log, act::fleet(&loaded.inventory)?, &progress);
    let mut terminal = None;
    let take_over = || {
        terminal = size.and_then(|_| Terminal::take());
        (read_input(size.is_some()), printer())
    };
    let ended = engine.session(proposal, request, take_over).await;
    drop(terminal);
    match ended? {
        Ended::Command(recorded) => Ok(Exit::of_command(recorded.exit)),
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

/// The terminal's size, when one is wanted and there is one at both ends.
fn terminal_size(wanted: bool) -> Option<(u16, u16)> {
    let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
    if !wanted || !stdin.is_terminal() || !stdout.is_terminal() {
        return None;
    }
    let window = tcgetwinsize(&stdout).ok()?;
    Some((window.ws_col, window.ws_row))
}

/// The operator's terminal in raw mode; put back when dropped.
struct Terminal {
    before: Termios,
}

impl Terminal {
    /// Takes the terminal over.
    fn take() -> Option<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Terminal { before })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _gone = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
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
