//! Generated files that say who made them: written whole, taken back only by the one whose mark they carry.
//!
//! The second line of such a file names the operation and the step that wrote its present content. The content
//! it replaced is kept beside it (a hidden `.NAME.before`), so that a step whose outcome was never known can
//! still be taken back. A file without the header is somebody else's and is never changed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tallybook_events::ids::{OperationId, StepIndex};
use tallybook_events::step::{FailureClass, StepFailure};

use crate::durable;
use crate::step::{fail, io_failure};

const HEADER: &str = "# Written by tallybook; changes are overwritten.\n";
const MADE_BY: &str = "# made-by ";

/// Who made a file: the operation and step whose forward wrote it.
pub type MadeBy = (OperationId, StepIndex);

/// What a step that wrote a file reports, for its undo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// The whole text of the file that was there before, where the step replaced one.
    pub previous: Option<String>,
}

/// What is at a generated file's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Absent,
    /// A file of the tool's.
    Ours {
        /// The mark of its maker, as written; empty for a file that is derived from others.
        made_by: String,
        /// What follows the header.
        body: String,
    },
    /// Something the tool did not write.
    Foreign,
}

/// What taking a file back did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakenBack {
    /// It is not there, or another operation's by now.
    Nothing,
    /// It is gone.
    Removed,
    /// What it had replaced is back.
    Restored,
}

fn mark((operation, step): MadeBy) -> String {
    format!("{operation} {step}")
}

/// Reads a generated file.
///
/// # Errors
/// When it is there and can't be read.
pub fn read(path: &Path) -> Result<Found, StepFailure> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Absent),
        Err(error) => return Err(io_failure("reading", path, &error)),
    };
    Ok(String::from_utf8(bytes).map_or(Found::Foreign, |text| parse(&text)))
}

pub(crate) fn parse(text: &str) -> Found {
    let Some(rest) = text.strip_prefix(HEADER) else {
        return Found::Foreign;
    };
    let marked = rest
        .strip_prefix(MADE_BY)
        .and_then(|rest| rest.split_once('\n'));
    let (made_by, body) = marked.unwrap_or(("", rest));
    Found::Ours {
        made_by: made_by.to_owned(),
        body: body.to_owned(),
    }
}

/// Those of these places that have something in them which the tool did not write.
///
/// # Errors
/// When one can't be looked at.
pub fn of_others(paths: impl IntoIterator<Item = PathBuf>) -> Result<Vec<PathBuf>, StepFailure> {
    let mut found = Vec::new();
    for path in paths {
        let is_others = match fs::symlink_metadata(&path) {
            Ok(meta) => !meta.is_file() || read(&path)? == Found::Foreign,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(io_failure("looking at", &path, &error)),
        };
        found.extend(is_others.then_some(path));
    }
    Ok(found)
}

/// The body of a generated file; `None` when it is not there.
///
/// # Errors
/// When it can't be read, or is somebody else's.
pub fn body(path: &Path) -> Result<Option<String>, StepFailure> {
    match read(path)? {
        Found::Absent => Ok(None),
        Found::Ours { body, .. } => Ok(Some(body)),
        Found::Foreign => Err(foreign(path)),
    }
}

/// Writes a file in the name of a step; says whether it was different before, and what undo needs.
///
/// # Errors
/// When somebody else's file is in its place, or it can't be written.
pub fn write(path: &Path, made_by: MadeBy, body: &str) -> Result<(bool, Replaced), StepFailure> {
    let before = hidden(path, "before");
    match read(path)? {
        Found::Foreign => return Err(foreign(path)),
        Found::Ours { body: there, .. } if there == body => {
            return Ok((false, replaced(path, made_by)?));
        }
        Found::Absent => {
            // Crash boundary: a leftover of an older change must not pass for what this step replaced.
            remove(&before)?;
            remove(&hidden(path, "taken"))?;
            put(path, &format!("{HEADER}{MADE_BY}{}\n{body}", mark(made_by)))?;
        }
        Found::Ours { made_by: other, .. } => {
            if other != mark(made_by) {
                let text = fs::read_to_string(path).map_err(|e| io_failure("reading", path, &e))?;
                // Crash boundary: from here both are the old text; the mark still says it is not ours.
                put(&before, &text)?;
            }
            put(path, &format!("{HEADER}{MADE_BY}{}\n{body}", mark(made_by)))?;
        }
    }
    Ok((true, replaced(path, made_by)?))
}

/// What a step replaced, as far as the host still tells.
///
/// # Errors
/// When it can't be read.
pub fn replaced(path: &Path, made_by: MadeBy) -> Result<Replaced, StepFailure> {
    let previous = if is_made_by(path, made_by)? {
        read_text(&hidden(path, "before"))?
    } else {
        None
    };
    Ok(Replaced { previous })
}

/// Whether a file carries this step's mark.
///
/// # Errors
/// When it is there and can't be read.
pub fn is_made_by(path: &Path, made_by: MadeBy) -> Result<bool, StepFailure> {
    Ok(match read(path)? {
        Found::Ours { made_by: there, .. } => there == mark(made_by),
        Found::Absent | Found::Foreign => false,
    })
}

/// What an undo would bring back; `None` when it would remove the file.
///
/// # Errors
/// When it can't be read.
pub fn previous(path: &Path, known: Option<&Replaced>) -> Result<Option<String>, StepFailure> {
    match known {
        Some(replaced) => Ok(replaced.previous.clone()),
        None => read_text(&hidden(path, "before")),
    }
}

/// Takes back what a step wrote: restores what it replaced, or removes it. Touches nothing of another's.
///
/// # Errors
/// When the file can't be changed.
pub fn take_back(
    path: &Path,
    made_by: MadeBy,
    known: Option<&Replaced>,
) -> Result<TakenBack, StepFailure> {
    if !is_made_by(path, made_by)? {
        return Ok(TakenBack::Nothing);
    }
    let previous = previous(path, known)?;
    let done = if let Some(text) = previous {
        put(path, &text)?;
        TakenBack::Restored
    } else {
        remove(path)?;
        TakenBack::Removed
    };
    // Crash boundary: a `before` that stays behind is ignored, since the mark is no longer this step's.
    remove(&hidden(path, "before"))?;
    Ok(done)
}

/// What a step that took a file away reports, for its undo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The whole text of the file, with the mark of whoever wrote it; `None` where there was none.
    pub text: Option<String>,
}

/// Takes a file of the tool's away in the name of a step; says whether it was there, and what undo needs, which is kept
/// beside it too: a step whose outcome was never known must still put back exactly what there was.
///
/// # Errors
/// When it is somebody else's, or can't be removed.
pub fn take_away(path: &Path, by: MadeBy) -> Result<(bool, Taken), StepFailure> {
    match read(path)? {
        Found::Foreign => Err(foreign(path)),
        Found::Absent => Ok((false, taken(path, by)?)),
        Found::Ours { .. } => {
            let text = read_text(path)?.unwrap_or_default();
            put(&hidden(path, "taken"), &format!("{}\n{text}", mark(by)))?;
            // Crash boundary: it is still there, and taking it away again keeps the same.
            remove(path)?;
            Ok((true, Taken { text: Some(text) }))
        }
    }
}

/// What a step took away, as far as the host still tells.
///
/// # Errors
/// When it can't be read.
pub fn taken(path: &Path, by: MadeBy) -> Result<Taken, StepFailure> {
    let kept = read_text(&hidden(path, "taken"))?;
    let text = kept.and_then(|kept| {
        let (who, text) = kept.split_once('\n')?;
        (who == mark(by)).then(|| text.to_owned())
    });
    Ok(Taken { text })
}

/// Puts back what a step took away, as it was; whether anything was to be put back. What is there by now stays.
///
/// # Errors
/// When it can't be written.
pub fn give_back(path: &Path, by: MadeBy, text: &str) -> Result<bool, StepFailure> {
    let absent = read(path)? == Found::Absent;
    if absent {
        put(path, text)?;
    }
    // Crash boundary: what stays behind is put back again, which changes nothing.
    forget_taken(path, by.0)?;
    Ok(absent)
}

/// Forgets what steps of an operation took away.
///
/// # Errors
/// When it can't be removed.
pub fn forget_taken(path: &Path, by: OperationId) -> Result<(), StepFailure> {
    let beside = hidden(path, "taken");
    if read_text(&beside)?.is_some_and(|text| text.starts_with(&format!("{by} "))) {
        remove(&beside)?;
        if read(path)? == Found::Absent {
            remove(&hidden(path, "before"))?;
        }
    }
    Ok(())
}

/// Writes a file that is wholly derived from others, and so needs no maker and no undo of its own.
///
/// # Errors
/// When somebody else's file is in its place, or it can't be written.
pub fn derive(path: &Path, body: &str) -> Result<bool, StepFailure> {
    match read(path)? {
        Found::Foreign => Err(foreign(path)),
        Found::Ours { body: there, .. } if there == body => Ok(false),
        Found::Ours { .. } | Found::Absent => put(path, &format!("{HEADER}{body}")).map(|()| true),
    }
}

/// Removes a file of the tool's; says whether it was there.
///
/// # Errors
/// When it is somebody else's, or can't be removed.
pub fn remove_ours(path: &Path) -> Result<bool, StepFailure> {
    match read(path)? {
        Found::Absent => Ok(false),
        Found::Foreign => Err(foreign(path)),
        Found::Ours { .. } => {
            remove(path)?;
            remove(&hidden(path, "before"))?;
            Ok(true)
        }
    }
}

/// The generated files of a directory by name, hidden ones left out.
///
/// # Errors
/// When the directory can't be read.
pub fn list(directory: &Path) -> Result<Vec<String>, StepFailure> {
    let error = |e: std::io::Error| io_failure("listing", directory, &e);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(error(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(error)?.file_name();
        names.extend(
            name.to_str()
                .filter(|n| !n.starts_with('.'))
                .map(str::to_owned),
        );
    }
    names.sort();
    Ok(names)
}

/// Writes a file whole or not at all, durably. dnsmasq, which is not root, must be able to read it.
fn put(path: &Path, text: &str) -> Result<(), StepFailure> {
    Ok(durable::write(path, 0o644, text.as_bytes())?)
}

fn remove(path: &Path) -> Result<(), StepFailure> {
    durable::remove(path)?;
    Ok(())
}

fn read_text(path: &Path) -> Result<Option<String>, StepFailure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_failure("reading", path, &error)),
    }
}

/// A hidden neighbour: dnsmasq and systemd pass over names that start with a dot.
fn hidden(path: &Path, suffix: &str) -> PathBuf {
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy())
        .unwrap_or_default();
    path.with_file_name(format!(".{name}.{suffix}"))
}

fn foreign(path: &Path) -> StepFailure {
    let mut failure = fail(
        FailureClass::Exists,
        format!(
            "{} is there and was not written by tallybook",
            path.display()
        ),
    );
    failure.hint = Some("move it away, or have it set aside by `op resume --force`".to_owned());
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(n: u8) -> MadeBy {
        (OperationId::from_bytes([n; 16]), StepIndex(3))
    }

    #[test]
    fn writes_once_and_takes_back_only_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let (changed, first) = write(&path, by(1), "one\n").unwrap();
        assert!(changed && first.previous.is_none());
        assert!(!write(&path, by(2), "one\n").unwrap().0);
        assert_eq!(take_back(&path, by(2), None).unwrap(), TakenBack::Nothing);
        let (changed, second) = write(&path, by(2), "two\n").unwrap();
        assert!(changed && second.previous.as_ref().unwrap().ends_with("one\n"));
        assert_eq!(
            take_back(&path, by(1), Some(&first)).unwrap(),
            TakenBack::Nothing
        );
        assert_eq!(take_back(&path, by(2), None).unwrap(), TakenBack::Restored);
        assert_eq!(body(&path).unwrap().unwrap(), "one\n");
        assert_eq!(take_back(&path, by(1), None).unwrap(), TakenBack::Removed);
        assert_eq!(take_back(&path, by(1), None).unwrap(), TakenBack::Nothing);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_repeat_still_knows_what_was_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write(&path, by(1), "one\n").unwrap();
        let (_, first) = write(&path, by(2), "two\n").unwrap();
        let (changed, again) = write(&path, by(2), "two\n").unwrap();
        assert!(!changed);
        assert_eq!(first, again);
    }

    #[test]
    fn undoing_two_changes_in_turn_brings_back_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write(&path, by(1), "one\n").unwrap();
        let (_, second) = write(&path, by(2), "two\n").unwrap();
        let (_, third) = write(&path, by(3), "three\n").unwrap();
        take_back(&path, by(3), Some(&third)).unwrap();
        assert_eq!(
            take_back(&path, by(2), Some(&second)).unwrap(),
            TakenBack::Restored
        );
        assert_eq!(body(&path).unwrap().unwrap(), "one\n");
    }

    #[test]
    fn what_was_taken_away_comes_back_as_it_was_wherever_it_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write(&path, by(1), "one\n").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let (changed, first) = take_away(&path, by(2)).unwrap();
        assert!(changed && first.text.as_ref() == Some(&text));
        assert_eq!(take_away(&path, by(2)).unwrap(), (false, first));
        assert_eq!(taken(&path, by(3)).unwrap().text, None);
        assert!(give_back(&path, by(2), &text).unwrap());
        assert!(!give_back(&path, by(2), &text).unwrap());
        // Its maker can still take it back, and nothing stays behind.
        assert_eq!(take_back(&path, by(1), None).unwrap(), TakenBack::Removed);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        write(&path, by(1), "one\n").unwrap();
        take_away(&path, by(2)).unwrap();
        forget_taken(&path, by(2).0).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn leaves_what_others_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "mine\n").unwrap();
        assert_eq!(
            write(&path, by(1), "x").unwrap_err().class,
            FailureClass::Exists
        );
        assert_eq!(derive(&path, "x").unwrap_err().class, FailureClass::Exists);
        assert_eq!(remove_ours(&path).unwrap_err().class, FailureClass::Exists);
        assert_eq!(take_back(&path, by(1), None).unwrap(), TakenBack::Nothing);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine\n");
    }

    #[test]
    fn a_cut_between_keeping_and_writing_is_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write(&path, by(1), "one\n").unwrap();
        put(
            &hidden(&path, "before"),
            &fs::read_to_string(&path).unwrap(),
        )
        .unwrap();
        fs::write(hidden(&path, "part"), "torn").unwrap();
        assert_eq!(take_back(&path, by(2), None).unwrap(), TakenBack::Nothing);
        write(&path, by(2), "two\n").unwrap();
        assert_eq!(take_back(&path, by(2), None).unwrap(), TakenBack::Restored);
        assert_eq!(list(dir.path()).unwrap(), ["f"]);
    }
}
