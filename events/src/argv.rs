//! Argument vectors as text, for people: so that it can be told where one ends, and that one is empty.

/// The arguments, separated by spaces; one that is empty or has a space or a quote in it is quoted as a shell would.
pub fn text<S: AsRef<str>>(argv: &[S]) -> String {
    let shown = argv.iter().map(|argument| {
        let argument = argument.as_ref();
        let plain = |c: char| !c.is_whitespace() && !matches!(c, '\'' | '"');
        if !argument.is_empty() && argument.chars().all(plain) {
            return argument.to_owned();
        }
        format!("'{}'", argument.replace('\'', r"'\''"))
    });
    shown.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_argument_can_be_told_from_the_next() {
        assert_eq!(text(&["ls", "-l", "/"]), "ls -l /");
        assert_eq!(text(&["touch", "", "a b"]), "touch '' 'a b'");
        assert_eq!(text(&["echo", "it's"]), r"echo 'it'\''s'");
        assert_eq!(text::<&str>(&[]), "");
    }
}
