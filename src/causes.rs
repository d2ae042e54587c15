//! An error with what caused it, in one line.
//!
//! For places that hold one line: an answer on a socket, a reason among others. The command line shows causes one by one.

/// The error, then its causes, nearest first.
pub fn in_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
