//! The agent as a process: speaks the protocol on stdin and stdout, and nothing else.
//!
//! A lost line must not end it while a step runs. Writing into a closed pipe is an error here, not a signal (the
//! standard library sees to that), and a hangup of the terminal or the SSH session is caught and let pass. Caught,
//! not ignored: what is ignored would be inherited by every program that a step runs. A polite signal to end is
//! obeyed between two steps.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tallybook_events::ids::Hash;
use tallybook_events::step::StepFailure;

use crate::layout::Layout;
use crate::protocol::{PROTOCOL, SendSource};
use crate::serve::{Deeds, serve};
use crate::step::{Link, StepKind};
use crate::{keeper, transfer};

/// What lists of processes call it.
const NAME: &CStr = c"tallybook-agent";

/// Is an agent that can do these steps, as its arguments say.
pub fn main(table: &'static [StepKind]) -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if let Some(done) = keeper::main(&args) {
        return done;
    }
    match args.as_slice() {
        [arg] if arg == "--version" => {
            println!(
                "{} {} protocol {PROTOCOL} {}",
                env!("CARGO_PKG_NAME"),
                env!("CARGO_PKG_VERSION"),
                std::env::consts::ARCH,
            );
            ExitCode::SUCCESS
        }
        [arg] if arg == "serve" => match converse(table) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("tallybook-agent: can't prepare the conversation: {error}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("usage: tallybook-agent serve | --version (it is started by tallybook)");
            ExitCode::from(2)
        }
    }
}

fn converse(table: &'static [StepKind]) -> io::Result<bool> {
    // Its file is called by its hash, and so would it be in what lists processes.
    let _called_otherwise = rustix::thread::set_name(NAME);
    let hung_up = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGHUP, hung_up)?;
    keeper::install()?;
    let deeds = Deeds {
        table,
        send: Some(send),
        program: program().ok(),
    };
    let input = own(io::stdin().as_fd())?;
    let output = own(io::stdout().as_fd())?;
    Ok(serve(input, output, &Layout::default(), deeds))
}

/// The hash of what runs here: the file may have been damaged since it was put on the host.
fn program() -> io::Result<Hash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open("/proc/self/exe")?)?;
    Ok(hasher.finalize().into())
}

fn send(source: &SendSource, layout: &Layout, link: &mut dyn Link) -> Result<(), StepFailure> {
    transfer::send::serve(link, source, layout).map(|_sent| ())
}

/// The stream without the standard library's buffers.
fn own(fd: BorrowedFd<'_>) -> io::Result<File> {
    fd.try_clone_to_owned().map(File::from)
}
