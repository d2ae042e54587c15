//! How results are shown: tables for people, JSON for programs, times and colours.
//!
//! It decides nothing and reads nothing but what it is given; what a log or a host said is never let through to a
//! terminal as a control sequence.

pub mod color;
pub mod difference;
pub mod json;
pub mod output;
pub mod packed;
pub mod pager;
pub mod progress;
pub mod summary;
pub mod table;
pub mod time;

pub use color::Ink;
pub use output::{Format, Output, Unwritten, Written};
pub use table::{Cell, Column, Table};

/// A text in one line, safe to show: control characters are written as escapes.
pub fn plain(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// A text of several lines, safe to show: lines and tabs stay, other control characters are written as escapes.
pub fn plain_lines(text: &str) -> Vec<String> {
    text.split('\n')
        .map(|line| {
            let line = line.strip_suffix('\r').unwrap_or(line);
            line.split('\t').map(plain).collect::<Vec<_>>().join("\t")
        })
        .collect()
}

/// A number of bytes for people, for example `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let (mut whole, mut tenth, mut unit) = (count, 0, 0);
    for (position, _) in UNITS.iter().enumerate() {
        unit = position;
        tenth = whole % 1024 * 10 / 1024;
        whole /= 1024;
        if whole < 1024 {
            break;
        }
    }
    format!("{whole}.{tenth} {}", UNITS[unit])
}

/// `1 host`, `2 hosts`.
pub fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_gets_through() {
        assert_eq!(plain("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\n");
        assert_eq!(plain("ça va"), "ça va");
        assert_eq!(
            plain_lines("one\r\ntwo\tthree\u{9b}\n"),
            ["one", "two\tthree\\u{9b}", ""]
        );
    }

    #[test]
    fn sizes_are_rounded_down() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1023.9 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
    }
}
