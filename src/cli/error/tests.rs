//! Errors as they are shown.

use super::*;
use crate::journal;
use crate::log::Refusal;
use tallybook_events::ids::OperationId;
use tallybook_events::subject::Subject;

#[test]
fn what_is_held_names_its_holder_and_how_to_look_at_it() {
    let error = Error::from(log::Error::from(Refusal::Claimed {
        subject: Subject::Cloud,
        holder: OperationId::from_bytes([0xab; 16]),
        summary: "host prepare cn1".to_owned(),
        status: "failed".to_owned(),
    }));
    assert_eq!(error.exit(), Exit::Locked);
    assert_eq!(
        error.report().text(),
        "error: cloud is held by operation abababababab (host prepare cn1), which is failed\n  \
         hint: `tallybook op show abababababab` shows how it stands"
    );
}

#[test]
fn causes_follow_nearest_first_and_control_characters_do_not_pass() {
    let source = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    let path = PathBuf::from("/st\u{1b}ore");
    let error = Error::from(log::Error::Directory { path, source });
    assert_eq!(error.exit(), Exit::Failed);
    assert_eq!(
        error.report().text(),
        "error: can't use the store in /st\\u{1b}ore\n  because: permission denied\n  \
         hint: run it as the user who owns the store, or name another one with --store"
    );
}

#[test]
fn a_full_disk_is_told_apart_wherever_it_is() {
    let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
    let journal = journal::Error::Io {
        doing: "writing",
        path: PathBuf::from("x"),
        source: full(),
    };
    let errors = [
        Error::from(log::Error::from(journal)),
        Error::Output(Unwritten(full())),
        Error::CloudLog(cloud_log::Error::Log(log::Error::Directory {
            path: PathBuf::from("x"),
            source: full(),
        })),
    ];
    for error in errors {
        assert_eq!(error.exit(), Exit::DiskFull, "{error:?}");
    }
}
