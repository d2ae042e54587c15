//! The program that shows what is longer than the terminal.
//!
//! It is started once all is there: until then the command can be interrupted, and nothing that it holds waits for a reader.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::process::Command;

use rustix::fs::{MemfdFlags, memfd_create};
use tokio::signal::unix::{SignalKind, signal};

use crate::huge_pages;

/// Shows all at once where there is no `less`.
const USUAL: &str = "if command -v less >/dev/null; then exec less; else exec cat; fi";
/// `less` ends by itself where all fits, lets colours through, and leaves the screen as it is.
const LESS: &str = "FRX";
/// A shell could not run a program, or did not find it (POSIX, Shell Command Language, 2.8.2).
const NOT_RUN: [i32; 2] = [126, 127];

/// What the environment says of pagers.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// The one that is named.
    pub named: Option<OsString>,
    /// Whether `less` was told what to do.
    pub less_is_told: bool,
    /// What kind of terminal there is.
    pub terminal: Option<OsString>,
}

/// A pager that may be started.
#[derive(Debug, Clone)]
pub struct Pager {
    /// Read by a shell, as everywhere where a variable names a pager: it is the operator's own.
    command: OsString,
    less_is_told: bool,
}

impl Pager {
    /// The pager that is named, or `less`. `None` where that is nothing, or `cat`, which shows all at once; and where none is
    /// named for a terminal on which `less` would only ask whether it shall go on.
    pub fn new(wishes: Wishes) -> Option<Self> {
        let terminal = wishes.terminal.unwrap_or_default();
        let can_page = !terminal.is_empty() && terminal != "dumb";
        let usual = || can_page.then(|| USUAL.into());
        let command = wishes.named.or_else(usual)?;
        let is_none = command.is_empty() || command == "cat";
        (!is_none).then_some(Pager {
            command,
            less_is_told: wishes.less_is_told,
        })
    }

    /// A place for what is to be shown, in memory.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub(super) fn paper(self) -> io::Result<Paper> {
        let file = memfd_create("tallybook-output", MemfdFlags::CLOEXEC)?;
        Ok(Paper {
            pager: self,
            text: BufWriter::new(file.into()),
        })
    }

    /// Shows a file from its beginning, and waits until whoever reads has read it.
    fn show(&self, mut text: File) -> io::Result<()> {
        // An interrupt goes to all who are at the terminal; whoever reads on must not be left alone with it.
        let _interrupts = signal(SignalKind::interrupt())?;
        text.rewind()?;
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(&self.command).stdin(text.try_clone()?);
        if !self.less_is_told {
            shell.env("LESS", LESS);
        }
        let ended = huge_pages::spawn(|| shell.spawn())?.wait()?;
        if ended.code().is_some_and(|code| NOT_RUN.contains(&code)) {
            text.rewind()?;
            io::copy(&mut text, &mut io::stdout().lock())?;
        }
        Ok(())
    }
}

/// What is to be shown, as far as it was written.
pub(super) struct Paper {
    pager: Pager,
    text: BufWriter<File>,
}

impl Paper {
    /// That is all: has it read.
    ///
    /// # Errors
    /// When no pager can be started, or the memory does not suffice.
    pub(super) fn read(self) -> io::Result<()> {
        let text = self.text.into_inner().map_err(|error| error.into_error())?;
        if text.metadata()?.len() == 0 {
            return Ok(());
        }
        self.pager.show(text)
    }
}

impl Write for Paper {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.text.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.text.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(named: Option<&str>, terminal: &str) -> Wishes {
        Wishes {
            named: named.map(OsString::from),
            less_is_told: false,
            terminal: Some(terminal.into()),
        }
    }

    #[test]
    fn an_empty_pager_and_cat_are_none() {
        for none in ["", "cat"] {
            assert!(
                Pager::new(wishes(Some(none), "xterm")).is_none(),
                "{none:?}"
            );
        }
        assert_eq!(Pager::new(wishes(None, "xterm")).unwrap().command, USUAL);
    }

    #[test]
    fn a_terminal_that_can_do_nothing_has_only_the_pager_that_is_named() {
        for terminal in ["", "dumb"] {
            assert!(Pager::new(wishes(None, terminal)).is_none(), "{terminal:?}");
            let named = Pager::new(wishes(Some("more -s"), terminal)).unwrap();
            assert_eq!(named.command, "more -s");
        }
    }
}
