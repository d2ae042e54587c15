//! Messages on standard error, for people who watch; never a second source of truth.
//!
//! No declared secret passes, and nothing that looks like one, whoever says it; what libraries say is left out unless they are named.

use std::ffi::OsStr;
use std::io::{self, Write};

use serde_json::Value;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::error::Error;
use super::{LogFormat, Options};
use crate::secrets::{clean, clean_text};

/// The variable that chooses messages.
pub(super) const VARIABLE: &str = "TALLYBOOK_LOG";

/// Begins to show messages.
///
/// # Errors
/// When the environment asks for messages in words that can't be understood.
pub(super) fn watch(options: &Options, colored: bool) -> Result<(), Error> {
    let wanted = std::env::var_os(VARIABLE);
    let filter = filter(options.verbose, wanted.as_deref())?;
    let builder = tracing_subscriber::fmt()
        .with_writer(Scrubbed(options.log_format))
        .with_env_filter(filter);
    // A second initialisation in one process can only come from a test.
    let _already = match options.log_format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => builder
            .with_ansi(colored)
            .with_target(options.verbose > 1)
            .without_time()
            .try_init(),
    };
    Ok(())
}

/// Which messages are shown. A level alone is for our own; those of libraries are warnings unless they are named.
fn filter(verbose: u8, wanted: Option<&OsStr>) -> Result<EnvFilter, Error> {
    let usual = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let text = match wanted.filter(|text| !text.is_empty()) {
        None => usual.to_owned(),
        Some(text) => text.to_string_lossy().into_owned(),
    };
    let mut directives = vec!["warn".to_owned()];
    for directive in text.split(',').map(str::trim).filter(|one| !one.is_empty()) {
        match directive.to_ascii_lowercase().as_str() {
            level @ ("off" | "error") => directives[0] = level.to_owned(),
            level @ ("warn" | "info" | "debug" | "trace") => {
                directives.push(format!("tallybook={level}"));
            }
            _ => directives.push(directive.to_owned()),
        }
    }
    EnvFilter::builder()
        .parse(directives.join(","))
        .map_err(|source| Error::Messages { text, source })
}

/// Standard error, with what looks like a secret taken out of every message.
#[derive(Debug, Clone, Copy)]
struct Scrubbed(LogFormat);

impl MakeWriter<'_> for Scrubbed {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

impl Write for Scrubbed {
    /// Takes one message: that is how they are written.
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        let scrubbed = match self.0 {
            LogFormat::Json => scrub_json(message),
            LogFormat::Text => scrub_colored(message),
        };
        io::stderr().write_all(&scrubbed)?;
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Colours may stand between a word and its value: a message with a secret loses them.
fn scrub_colored(message: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(message);
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.as_ref();
    while let Some((before, behind)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        rest = behind.split_once('m').map_or("", |(_, rest)| rest);
    }
    plain.push_str(rest);
    let scrubbed = clean(plain.as_bytes());
    match scrubbed == plain.as_bytes() {
        true => message.to_vec(),
        false => scrubbed,
    }
}

/// In JSON lines are escaped, so each text is looked at by itself.
fn scrub_json(message: &[u8]) -> Vec<u8> {
    let Ok(document) = serde_json::from_slice(message) else {
        return clean(message);
    };
    let mut text = scrub_value(None, document).to_string().into_bytes();
    text.push(b'\n');
    text
}

fn scrub_value(name: Option<&str>, value: Value) -> Value {
    match value {
        Value::String(text) => {
            // `password = "x"` as a field of a message.
            let announced = name.map(|name| format!("{name}=x"));
            if announced.is_some_and(|text| clean_text(&text) != text) {
                return "[removed]".into();
            }
            clean_text(&text).into()
        }
        Value::Array(values) => values
            .into_iter()
            .map(|value| scrub_value(name, value))
            .collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| {
                let value = scrub_value(Some(&name), value);
                (name, value)
            })
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::{Declared, watch_over};

    #[test]
    fn a_level_alone_is_for_our_own_messages() {
        let told = |verbose, wanted: Option<&str>| {
            filter(verbose, wanted.map(OsStr::new)).unwrap().to_string()
        };
        assert_eq!(told(0, None), "tallybook=warn,warn");
        assert_eq!(told(2, Some("")), "tallybook=debug,warn");
        assert_eq!(told(0, Some("debug")), "tallybook=debug,warn");
        assert_eq!(
            told(0, Some("russh=debug,INFO")),
            "tallybook=info,russh=debug,warn"
        );
        assert_eq!(told(0, Some("off")), "off");
        let error = filter(0, Some(OsStr::new("tallybook=loud"))).unwrap_err();
        assert!(error.to_string().contains("tallybook=loud"), "{error}");
    }

    #[test]
    fn secrets_do_not_pass_whatever_is_around_them() {
        let text = |message: &str| String::from_utf8(scrub_colored(message.as_bytes())).unwrap();
        let colored =
            "\u{1b}[33mWARN\u{1b}[0m said \u{1b}[3mpassword\u{1b}[0m\u{1b}[2m=\u{1b}[0mhunter2\n";
        assert_eq!(text(colored), "WARN said password=[removed]\n");
        let harmless = "\u{1b}[33mWARN\u{1b}[0m said nothing\n";
        assert_eq!(text(harmless), harmless);
        let json = |message: &str| -> Value {
            serde_json::from_slice(&scrub_json(message.as_bytes())).unwrap()
        };
        let message = r#"{"fields":{"message":"a -----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\nb","token":"hunter2 x","n":1}}"#;
        let fields = &json(message)["fields"];
        assert_eq!(fields["message"], "a [private key removed]\nb");
        assert_eq!(fields["token"], "[removed]");
        assert_eq!(fields["n"], 1);
    }

    #[test]
    fn no_declared_secret_passes() {
        let text = "[secrets.pw]\nenv = \"PW\"\n";
        let inventory = crate::cloud::parse("cloud.toml", text).unwrap();
        let declared = Declared::read(&inventory, |_| Some("correct \"horse\"".into()));
        watch_over(&std::sync::Arc::new(declared));
        let colored = "\u{1b}[33mWARN\u{1b}[0m said correct \"horse\" and more\n";
        assert_eq!(
            scrub_colored(colored.as_bytes()),
            b"WARN said [secret pw] and more\n"
        );
        let json =
            br#"{"fields":{"message":"said correct \"horse\"","x":["correct%20%22horse%22"]}}"#;
        let said: Value = serde_json::from_slice(&scrub_json(json)).unwrap();
        assert_eq!(said["fields"]["message"], "said [secret pw]");
        assert_eq!(said["fields"]["x"][0], "[secret pw]");
    }
}
