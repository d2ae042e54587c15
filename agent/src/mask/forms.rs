//! The forms in which a secret may be printed: as it is, and as programs write it that quote, escape or encode.
//!
//! What is not here is not taken out: ciphers, hashes, compression, other bases, a value that is taken apart.

use std::collections::BTreeSet;

use crate::secret::VALUE_LEN_MIN;

/// Base64 of RFC 4648, 4 and 5.
const ALPHABETS: [&[u8; 64]; 2] = [
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
];
/// What percent-encoding leaves besides letters and digits: RFC 3986's unreserved characters; `encodeURIComponent`;
/// Python's `quote`; what a password in a URL may have.
const LEFT: [&[u8]; 4] = [b"-._~", b"-._~!*'()", b"-._~/", b"-._~!$&'()*+,;="];

/// Every form of a value: of the whole, and of each line of one that has several.
pub(super) fn of(value: &[u8]) -> BTreeSet<Vec<u8>> {
    let mut forms = BTreeSet::new();
    add(value, &mut forms);
    // As a terminal shows it.
    let lines: Vec<&[u8]> = value.split(|byte| *byte == b'\n').collect();
    forms.insert(lines.join(&b"\r\n"[..]));
    for line in lines {
        let line = line.trim_ascii();
        if line.len() >= VALUE_LEN_MIN {
            add(line, &mut forms);
        }
    }
    forms
}

fn add(value: &[u8], forms: &mut BTreeSet<Vec<u8>>) {
    forms.insert(value.to_vec());
    for alphabet in ALPHABETS {
        forms.extend((0..3).map(|before| base64(alphabet, value, before)));
    }
    for digits in [b"0123456789abcdef", b"0123456789ABCDEF"] {
        forms.insert(value.iter().flat_map(|byte| hex(*byte, digits)).collect());
        for left in LEFT {
            let plain = percent(value, left, digits);
            forms.insert(String::from_utf8_lossy(&plain).replace("%20", "+").into());
            forms.insert(plain);
        }
    }
    forms.extend(escaped(value));
    if let Ok(text) = std::str::from_utf8(value) {
        let html = |apostrophe: &str| {
            let text = text.replace('&', "&amp;").replace('<', "&lt;");
            let text = text.replace('>', "&gt;").replace('"', "&quot;");
            text.replace('\'', apostrophe).into_bytes()
        };
        forms.extend(["'", "&#39;", "&#x27;", "&apos;"].map(html));
        forms.extend(json(text));
    }
}

/// The characters of base64 that `value` alone decides, where `before` bytes stand before it (modulo 3).
fn base64(alphabet: &[u8; 64], value: &[u8], before: usize) -> Vec<u8> {
    let bits = 8 * before..8 * (before + value.len());
    let bit = |at: usize| {
        let byte = value.get(at / 8 - before).copied().unwrap_or_default();
        usize::from((byte >> (7 - at % 8)) & 1)
    };
    let character = |number: usize| {
        let six = (6 * number..6 * number + 6).fold(0, |six, at| (six << 1) | bit(at));
        alphabet[six]
    };
    (bits.start.div_ceil(6)..bits.end / 6)
        .map(character)
        .collect()
}

fn hex(byte: u8, digits: &[u8; 16]) -> [u8; 2] {
    [
        digits[usize::from(byte >> 4)],
        digits[usize::from(byte & 15)],
    ]
}

fn percent(value: &[u8], left: &[u8], digits: &[u8; 16]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() * 3);
    for byte in value {
        if byte.is_ascii_alphanumeric() || left.contains(byte) {
            out.push(*byte);
        } else {
            out.push(b'%');
            out.extend(hex(*byte, digits));
        }
    }
    out
}

/// As shells and programming languages quote it.
fn escaped(value: &[u8]) -> Vec<Vec<u8>> {
    let before = |special: &dyn Fn(u8) -> bool| {
        let escape = |byte: &u8| match special(*byte) {
            true => vec![b'\\', *byte],
            false => vec![*byte],
        };
        value.iter().flat_map(escape).collect::<Vec<u8>>()
    };
    let instead = |of: u8, text: &[u8]| {
        let replace = |byte: &u8| match *byte == of {
            true => text.to_vec(),
            false => vec![*byte],
        };
        value.iter().flat_map(replace).collect::<Vec<u8>>()
    };
    let c = |quotes: &[u8]| {
        let escape = |byte: &u8| match *byte {
            b'\n' => b"\\n".to_vec(),
            b'\r' => b"\\r".to_vec(),
            b'\t' => b"\\t".to_vec(),
            b'\\' => b"\\\\".to_vec(),
            quote if quotes.contains(&quote) => vec![b'\\', quote],
            byte => vec![byte],
        };
        value.iter().flat_map(escape).collect::<Vec<u8>>()
    };
    vec![
        // Within '…', as sh and `set -x` write it, and as Python's shlex does.
        instead(b'\'', b"'\\''"),
        instead(b'\'', b"'\"'\"'"),
        // Within "…", and without quotes (`printf %q`).
        before(&|byte| matches!(byte, b'"' | b'\\' | b'$' | b'`')),
        before(&|byte| matches!(byte, b'"' | b'\\' | b'$' | b'`' | b'!')),
        before(&|byte| {
            byte.is_ascii() && !byte.is_ascii_alphanumeric() && !b"_-./:@%+=,^".contains(&byte)
        }),
        before(&|byte| {
            byte.is_ascii() && !byte.is_ascii_alphanumeric() && !b"_-./:@%+=".contains(&byte)
        }),
        // C, Python, Rust, $'…'.
        c(b""),
        c(b"\""),
        c(b"'"),
        c(b"\"'"),
    ]
}

/// As JSON: the shortest way, with `\/`, for HTML (as Go does), and with nothing but ASCII.
fn json(text: &str) -> Vec<Vec<u8>> {
    let write = |slash: bool, html: bool, ascii: bool| {
        let mut out = String::with_capacity(text.len() * 2);
        let unicode = |c: char, out: &mut String| {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        };
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '/' if slash => out.push_str("\\/"),
                '<' | '>' | '&' if html => unicode(c, &mut out),
                c if c < ' ' || (ascii && !c.is_ascii()) => unicode(c, &mut out),
                c => out.push(c),
            }
        }
        out.into_bytes()
    };
    let mut forms = Vec::new();
    for slash in [false, true] {
        for html in [false, true] {
            forms.extend([write(slash, html, false), write(slash, html, true)]);
        }
    }
    forms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(value: &str, form: &str) {
        let forms = of(value.as_bytes());
        assert!(forms.contains(form.as_bytes()), "{form} of {value}");
    }

    #[test]
    fn what_other_programs_write_is_known() {
        // As base64 writes it, and with one and two bytes before it.
        has("hunter2!", "aHVudGVyMi");
        has("hunter2!", "h1bnRlcjIh");
        has("hunter2!", "odW50ZXIyI");
        // As Python and bash write it.
        let value = "p@ss w'or\"d/\\ü$x";
        for form in [
            "704073732077276f7222642f5cc3bc2478",
            "p%40ss%20w%27or%22d/%5C%C3%BC%24x",
            "p%40ss%20w%27or%22d%2F%5C%C3%BC%24x",
            "p%40ss+w%27or%22d%2F%5C%C3%BC%24x",
            r#"p@ss w'or\"d/\\\u00fc$x"#,
            r#"p@ss w'"'"'or"d/\ü$x"#,
            r#"p@ss w\'or"d/\\ü$x"#,
            r#"p@ss\ w\'or\"d/\\ü\$x"#,
            r#"p@ss w'\''or"d/\ü$x"#,
        ] {
            has(value, form);
        }
    }

    #[test]
    fn each_line_of_several_is_known() {
        let forms = of(b"-----BEGIN-----\n  line-one\r\nab\nline-two");
        for line in ["line-one", "line-two", "-----BEGIN-----", "bGluZS1vbm"] {
            assert!(forms.contains(line.as_bytes()), "{line}");
        }
        assert!(!forms.contains(&b"ab"[..]), "it would be found everywhere");
        let shortest = forms.iter().map(Vec::len).min();
        assert!(shortest >= Some(VALUE_LEN_MIN), "{shortest:?}");
    }
}
