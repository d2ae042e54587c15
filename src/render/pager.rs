//! The program that shows what is longer than the terminal.

use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::huge_pages;

/// Shows all at once where there is no `less`.
const USUAL: &str = "if command -v less >/dev/null; then exec less; else exec cat; fi";
/// `less` ends by itself where all fits, lets colours through, and leaves the screen as it is.
const LESS: &str = "FRX";

/// A pager that may be started.
#[derive(Debug, Clone)]
pub struct Pager {
    /// Read by a shell, as everywhere where a variable names a pager: it is the operator's own.
    command: OsString,
    /// Whether the operator has told `less` what to do.
    is_told: bool,
}

impl Pager {
    /// The pager that was named, or `less`; `None` where that is nothing, or `cat`, which shows all at once. `is_told` is whether
    /// there are options for `less` already.
    pub fn new(named: Option<OsString>, is_told: bool) -> Option<Self> {
        let command = named.unwrap_or_else(|| USUAL.into());
        let is_none = command.is_empty() || command == "cat";
        (!is_none).then_some(Pager { command, is_told })
    }

    /// Starts it.
    ///
    /// # Errors
    /// When there is no shell, or interrupts can't be left to it.
    pub(super) fn start(self) -> io::Result<Paged> {
        // An interrupt goes to all who are at the terminal; whoever reads on must not be left alone with it.
        let interrupts = signal(SignalKind::interrupt())?;
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(&self.command).stdin(Stdio::piped());
        if !self.is_told {
            shell.env("LESS", LESS);
        }
        let mut child = huge_pages::spawn(|| shell.spawn())?;
        let stdin = child.stdin.take().expect("its input is piped");
        Ok(Paged {
            child,
            stdin: BufWriter::new(stdin),
            _interrupts: interrupts,
        })
    }
}

/// A pager that was started.
pub(super) struct Paged {
    child: Child,
    stdin: BufWriter<ChildStdin>,
    _interrupts: Signal,
}

impl Paged {
    /// Tells it that this is all, and waits until it ends.
    pub(super) fn wait(self) {
        let Paged {
            mut child, stdin, ..
        } = self;
        // What it does not read is not wanted.
        drop(stdin.into_parts());
        let _ended = child.wait();
    }
}

impl Write for Paged {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stdin.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdin.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_pager_and_cat_are_none() {
        for none in ["", "cat"] {
            assert!(Pager::new(Some(none.into()), false).is_none(), "{none:?}");
        }
        assert_eq!(Pager::new(None, false).unwrap().command, USUAL);
        assert!(Pager::new(Some("more -s".into()), false).is_some());
    }
}
