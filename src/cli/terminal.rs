//! The operator's terminal in raw mode.
//!
//! It is put back however the program ends: when this is dropped, and by whoever ends the process without that.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// What the terminal was before it was taken over.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal's columns and rows, when one is wanted and there is one at both ends.
pub(super) fn size(wanted: bool) -> Option<(u16, u16)> {
    let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
    if !wanted || !stdin.is_terminal() || !stdout.is_terminal() {
        return None;
    }
    let window = tcgetwinsize(&stdout).ok()?;
    Some((window.ws_col, window.ws_row))
}

/// The operator's terminal in raw mode; put back when dropped.
pub(super) struct Terminal;

impl Terminal {
    /// Takes the terminal over.
    pub(super) fn take() -> Option<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        let mut kept = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        *kept = Some(before);
        Some(Terminal)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        put_back();
    }
}

/// Makes the terminal what it was, where it was taken over.
pub(super) fn put_back() {
    let mut kept = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(before) = kept.take() {
        let _gone = tcsetattr(std::io::stdin(), OptionalActions::Now, &before);
    }
}
