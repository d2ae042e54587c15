//! Asking whoever is at the terminal whether what was shown is wanted. Never answers for somebody who is not there.

use std::io::{BufRead, IsTerminal, Write};

use super::Error;
use crate::render::{Format, Output};

/// Asks; only `y` and `yes` are a yes.
///
/// # Errors
/// When nobody can be asked.
pub(super) fn is_wanted(out: &mut Output, question: &str) -> Result<bool, Error> {
    if !std::io::stdin().is_terminal() || out.format() == Format::Json {
        return Err(Error::Unconfirmed);
    }
    out.flush()?;
    let mut asked = std::io::stderr();
    let mut answer = String::new();
    let read = write!(asked, "{question} [y/N] ")
        .and_then(|()| asked.flush())
        .and_then(|()| std::io::stdin().lock().read_line(&mut answer));
    Ok(read.is_ok() && matches!(answer.trim(), "y" | "yes"))
}
