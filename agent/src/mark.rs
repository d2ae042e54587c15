//! The file `made-by` beside what a step made: which operation and step made it. Undo and repeat act only on
//! what carries their own mark; what carries none, or another, is not theirs to touch.

use std::fs;
use std::io;
use std::path::Path;

use tallybook_events::ids::{OperationId, StepIndex};
use tallybook_events::step::{FailureClass, StepFailure};

use crate::durable;
use crate::step::{fail, io_failure};

/// The file's name.
pub const NAME: &str = "made-by";

/// Who made something: an operation and the step of it.
pub type Origin = (OperationId, StepIndex);

/// The mark's text.
pub fn text(origin: Origin) -> String {
    format!("{} {}\n", origin.0, origin.1)
}

/// That what an operation of the tool's made is not set aside or taken over as somebody else's.
pub fn refused(place: &Path, (operation, step): Origin) -> StepFailure {
    let message = format!(
        "{} was made by step {step} of operation {}",
        place.display(),
        operation.short()
    );
    StepFailure {
        hint: Some("take that operation back, or remove what it made".to_owned()),
        ..fail(FailureClass::Exists, message)
    }
}

/// Reads a mark's first line; `None` when it is none.
pub fn parse(text: &str) -> Option<Origin> {
    let (operation, step) = text.lines().next()?.trim_end().split_once(' ')?;
    Some((operation.parse().ok()?, StepIndex(step.parse().ok()?)))
}

/// Marks a directory.
///
/// # Errors
/// When the mark can't be written.
pub fn write(dir: &Path, origin: Origin) -> Result<(), StepFailure> {
    Ok(durable::write(
        &dir.join(NAME),
        0o644,
        text(origin).as_bytes(),
    )?)
}

/// Who made the directory; `None` when it carries no mark, or is not there.
///
/// # Errors
/// When the mark is there and can't be read.
pub fn read(dir: &Path) -> Result<Option<Origin>, StepFailure> {
    read_file(&dir.join(NAME))
}

/// Who wrote a file that begins with a mark.
///
/// # Errors
/// When it is there and can't be read.
pub fn read_file(path: &Path) -> Result<Option<Origin>, StepFailure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(parse(&text)),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidData
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(io_failure("reading", path, &e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back_and_nothing_else_is_taken_for_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let origin = (OperationId::new(1, [7; 10]), StepIndex(3));
        write(dir.path(), origin).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(origin));
        fs::write(dir.path().join(NAME), b"somebody else\n").unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
    }
}
