//! The one place where secrets are taken out of what programs print, before it is kept or sent anywhere.
//!
//! A safety net with wide meshes, not a proof: it knows PEM private keys, values after words like `password=`,
//! passwords inside URLs, and the hashes of crypt(3). Secrets that are declared are taken out by [`crate::mask`] before.
//! Whatever prints others must not print them.

use crate::secret::SecretName;

const REMOVED: &[u8] = b"[removed]";
const KEY_REMOVED: &[u8] = b"[private key removed]";
/// Words that announce a secret when `=` or `:` follows them.
const WORDS: [&[u8]; 9] = [
    b"password",
    b"passwd",
    b"passphrase",
    b"secret",
    b"token",
    b"api_key",
    b"apikey",
    b"access_key",
    b"private_key",
];

/// The same bytes without what looks like a secret.
pub fn scrub(bytes: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(bytes.len());
    let mut in_key = false;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        if in_key {
            in_key = !is_key_mark(line, b"-----END ");
            continue;
        }
        if let Some(start) =
            find(line, b"-----BEGIN ").filter(|_| is_key_mark(line, b"-----BEGIN "))
        {
            out.extend_from_slice(&line[..start]);
            out.extend_from_slice(KEY_REMOVED);
            out.push(b'\n');
            in_key = !is_key_mark(line, b"-----END ");
            continue;
        }
        if is_key_mark(line, b"-----END ") {
            // Its beginning was dropped by a bound: what stands before it is the rest of the key.
            forget_key_lines(&mut out);
            out.extend_from_slice(KEY_REMOVED);
            out.push(b'\n');
            continue;
        }
        scrub_line(line, &mut out);
    }
    out
}

/// The same text without what looks like a secret.
pub fn scrub_text(text: &str) -> String {
    String::from_utf8_lossy(&scrub(text.as_bytes())).into_owned()
}

fn is_key_mark(line: &[u8], mark: &[u8]) -> bool {
    find(line, mark).is_some_and(|at| find(&line[at..], b"PRIVATE KEY").is_some())
}

/// Takes lines off the end that can only be the inside of a PEM block.
fn forget_key_lines(out: &mut Vec<u8>) {
    loop {
        let body = out.strip_suffix(b"\n").unwrap_or(out);
        let start = body
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let line = body[start..].trim_ascii();
        let is_base64 =
            |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
        if line.is_empty() || line.len() > 76 || !line.iter().all(is_base64) {
            return;
        }
        out.truncate(start);
    }
}

fn scrub_line(line: &[u8], out: &mut Vec<u8>) {
    let mut at = 0;
    while at < line.len() {
        let rest = &line[at..];
        if let Some((keep, drop)) = secret_at(line, at) {
            out.extend_from_slice(&rest[..keep]);
            out.extend_from_slice(REMOVED);
            at += keep + drop;
        } else {
            out.push(line[at]);
            at += 1;
        }
    }
}

/// Where a secret is announced at `at`: how many bytes announce it, and how many it has.
fn secret_at(line: &[u8], at: usize) -> Option<(usize, usize)> {
    let rest = &line[at..];
    word_value(rest)
        .or_else(|| url_password(rest))
        .or_else(|| crypt_hash(rest))
        .filter(|(_, drop)| *drop > 0)
}

fn word_value(rest: &[u8]) -> Option<(usize, usize)> {
    let word = WORDS
        .iter()
        .find(|word| rest.len() > word.len() && rest[..word.len()].eq_ignore_ascii_case(word))?;
    let mut at = word.len();
    // `"password": "x"`, `password = x`, `PASSWORD=x`.
    let skip = |at: &mut usize, allowed: &[u8]| {
        while rest.get(*at).is_some_and(|byte| allowed.contains(byte)) {
            *at += 1;
        }
    };
    skip(&mut at, b"\"'");
    skip(&mut at, b" \t");
    if !matches!(rest.get(at), Some(b'=' | b':')) {
        return None;
    }
    at += 1;
    skip(&mut at, b" \t");
    let quote = rest
        .get(at)
        .copied()
        .filter(|byte| matches!(byte, b'"' | b'\''));
    if quote.is_some() {
        at += 1;
    }
    let ends = |byte: &u8| match quote {
        Some(quote) => *byte == quote || *byte == b'\n',
        None => byte.is_ascii_whitespace() || matches!(byte, b',' | b';' | b'&'),
    };
    // A declared secret stands named there already.
    while let Some(len) = named_len(&rest[at..]) {
        at += len;
    }
    let value = &rest[at..];
    // What was taken out already is not taken out again.
    if value.starts_with(REMOVED) {
        at += REMOVED.len();
    }
    let value = &rest[at..];
    Some((at, value.iter().position(ends).unwrap_or(value.len())))
}

/// How long `[secret NAME]` is, if that is what the bytes begin with.
fn named_len(value: &[u8]) -> Option<usize> {
    let begin = b"[secret ";
    let name = value.strip_prefix(begin)?;
    let len = name.iter().position(|byte| *byte == b']')?;
    let text = std::str::from_utf8(&name[..len]).ok()?;
    SecretName::new(text).ok()?;
    Some(begin.len() + len + 1)
}

fn url_password(rest: &[u8]) -> Option<(usize, usize)> {
    let host = rest.strip_prefix(b"://")?;
    let end = host
        .iter()
        .position(|byte| byte.is_ascii_whitespace() || *byte == b'/');
    let host = &host[..end.unwrap_or(host.len())];
    let user_info = &host[..host.iter().rposition(|byte| *byte == b'@')?];
    let colon = user_info.iter().position(|byte| *byte == b':')?;
    Some((3 + colon + 1, user_info.len() - colon - 1))
}

/// `$6$salt$hash` and its like: crypt(5).
fn crypt_hash(rest: &[u8]) -> Option<(usize, usize)> {
    const METHODS: [&[u8]; 9] = [
        b"$1$", b"$5$", b"$6$", b"$2a$", b"$2b$", b"$2y$", b"$y$", b"$gy$", b"$7$",
    ];
    let method = METHODS.iter().find(|method| rest.starts_with(method))?;
    let value = &rest[method.len()..];
    let inside = |byte: &u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/' | b'$' | b'=' | b',')
    };
    let len = value
        .iter()
        .position(|byte| !inside(byte))
        .unwrap_or(value.len());
    (len >= 20).then_some((method.len(), len))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(input: &str) -> String {
        scrub_text(input)
    }

    #[test]
    fn private_keys_go_whole_and_public_ones_stay() {
        let pem = "a\n-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\nBBBB=\n-----END OPENSSH PRIVATE KEY-----\nb\n";
        assert_eq!(text(pem), "a\n[private key removed]\nb\n");
        let public = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
        assert_eq!(text(public), public);
    }

    #[test]
    fn half_a_private_key_goes_as_well() {
        let unended = "a\n-----BEGIN RSA PRIVATE KEY-----\r\nAAAA\nBBBB";
        assert_eq!(text(unended), "a\n[private key removed]\n");
        let unbegun = "of text\nAAAA+/\nBBBB=\n-----END PRIVATE KEY-----\nb\n";
        assert_eq!(text(unbegun), "of text\n[private key removed]\nb\n");
    }

    #[test]
    fn values_after_telling_words_go() {
        for (input, output) in [
            ("password=hunter2 next", "password=[removed] next"),
            ("DB_PASSWORD: hunter2\n", "DB_PASSWORD: [removed]\n"),
            (
                "{\"token\": \"a b\", \"x\": 1}",
                "{\"token\": \"[removed]\", \"x\": 1}",
            ),
            ("secret = 'a b' c", "secret = '[removed]' c"),
            ("passwd:", "passwd:"),
            ("the password is asked for", "the password is asked for"),
            (
                "get https://me:pw@host/x",
                "get https://me:[removed]@host/x",
            ),
            ("https://host:8080/x@y", "https://host:8080/x@y"),
            (
                "root:$6$saltsalt$0123456789abcdef./:1",
                "root:$6$[removed]:1",
            ),
            ("costs $1$ or $5$", "costs $1$ or $5$"),
        ] {
            assert_eq!(text(input), output, "{input}");
        }
    }

    #[test]
    fn other_bytes_stay_as_they_are() {
        let bytes = b"\xff\x00plain\r\nlines \x1b[1mand colours\x1b[0m";
        assert_eq!(scrub(bytes), bytes);
    }
}
