//! Puts the agent on a host: once, at a path named by its hash, for root only, and proven to run.
//!
//! Must never leave a half-written file under the final name, never place anything that is not byte for byte the agent asked for,
//! and never ask anything of one that does not tell its hash. No command of its own when the agent is there already and sound, one more when it is not.

use std::fmt;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::command::{Command, Word};
use super::error::{Error, Obstacle, Refused};
use super::session::{Bounds, Output, Session};

/// Where an agent may live, in order of preference.
pub const DIRECTORIES: [&str; 3] = [
    "/var/lib/tallybook/agent",
    "/run/tallybook/agent",
    "/root/.cache/tallybook",
];

const PROBE: Bounds = Bounds {
    timeout: Duration::from_secs(30),
    stdout_bytes_max: 16 * 1024,
};

/// The path of an agent that runs on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentPath {
    path: Word,
    /// Whether it had to be sent.
    pub pushed: bool,
}

impl AgentPath {
    /// The path.
    pub fn as_word(&self) -> &Word {
        &self.path
    }

    /// The command that becomes the agent in its serving mode.
    pub fn serve(&self) -> Command {
        Command::new("exec \"$1\" serve").word(self.path.clone())
    }
}

impl fmt::Display for AgentPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(f)
    }
}

/// `HASH SHA256 DIRECTORY…`: becomes the agent where it already is, and else ends without a word. The sum is that of the first
/// 4 KiB: a shell runs what the kernel takes for no program as a script, so that part is proven before it is run.
const ATTACH: &str = r#"
[ -O / ] || exit 0
hash=$1 sum=$2; shift 2
for dir; do
  file=$dir/$hash
  [ -f "$file" ] && [ -x "$file" ] && [ ! -L "$file" ] && [ -O "$file" ] && [ -O "$dir" ] || continue
  have=$(head -c 4096 "$file" | sha256sum) || continue
  [ "${have%% *}" = "$sum" ] || continue
  exec "$file" serve
done
"#;

/// `HASH SIZE SHA256 DIRECTORY…`: tells who and what we are there, and where the agent already is.
/// `--version` proves that it runs; a file owned by another or of other content is not there for us.
const LOOK: &str = r#"
LC_ALL=C; export LC_ALL
PATH=$PATH:/usr/sbin:/usr/bin:/sbin:/bin
echo "tallybook 1"
echo "machine $(uname -m)"
id=$(id -u); echo "id $id"
[ "$id" = 0 ] || exit 0
hash=$1 size=$2 sum=$3; shift 3
for dir; do
  file=$dir/$hash
  [ -f "$file" ] && [ -x "$file" ] && [ ! -L "$file" ] && [ -O "$file" ] && [ -O "$dir" ] || continue
  [ "$(wc -c < "$file")" -eq "$size" ] || continue
  have=$(sha256sum < "$file") || continue
  [ "${have%% *}" = "$sum" ] || continue
  "$file" --version < /dev/null > /dev/null 2>&1 || continue
  echo "found $dir"
  exit 0
done
"#;

/// `HASH SIZE SHA256 DIRECTORY…`, the agent on standard input: takes the first directory that can execute files,
/// and prints `skip DIR WHY: TEXT` for those that don't, then `placed DIR` or `lost DIR WHY: TEXT`.
const PLACE: &str = r#"
LC_ALL=C; export LC_ALL
PATH=$PATH:/usr/sbin:/usr/bin:/sbin:/bin
umask 077
hash=$1 size=$2 sum=$3; shift 3
temp=
trap '[ -z "$temp" ] || rm -f "$temp"' EXIT
trap 'exit 1' HUP INT TERM PIPE
say() { echo "$1 $dir $2: $(printf %s "$3" | tr '\n' ' ' | cut -c1-300)"; }
try() {
  text=$( { [ ! -L "$dir" ] && mkdir -p "$dir" && [ -O "$dir" ] && chmod 0700 "$dir"; } 2>&1 ) || { say skip make "$text"; return 1; }
  find "$dir" -maxdepth 1 -name '.new.*' -mmin +60 -exec rm -f {} + 2> /dev/null
  temp=$(mktemp "$dir/.new.XXXXXX" 2>&1) || { text=$temp; temp=; say skip make "$text"; return 1; }
  text=$( { printf '#!/bin/sh\nexit 0\n' > "$temp"; } 2>&1 && chmod 0700 "$temp" 2>&1 ) || { say skip write "$text"; return 1; }
  text=$( "$temp" 2>&1 ) || { say skip exec "$text"; return 1; }
}
for dir; do
  if try; then break; fi
  [ -z "$temp" ] || rm -f "$temp"
  temp= dir=
done
[ -n "$temp" ] || exit 0
text=$(cat 2>&1 > "$temp") || { say lost write "$text"; exit 0; }
have=$(wc -c < "$temp")
[ "$have" -eq "$size" ] || { say lost damaged "$((have)) of $size bytes arrived"; exit 0; }
text=$(sync "$temp" 2>&1) || { say lost write "$text"; exit 0; }
have=$(sha256sum < "$temp" 2>&1) || { say lost sum "$have"; exit 0; }
[ "${have%% *}" = "$sum" ] || { say lost damaged "the SHA-256 differs"; exit 0; }
text=$("$temp" --version 2>&1 < /dev/null) || { say lost hello "$text"; exit 0; }
text=$(mv -f "$temp" "$dir/$hash" 2>&1) || { say lost write "$text"; exit 0; }
temp=
sync "$dir" 2> /dev/null || sync
echo "placed $dir"
"#;

/// How much of an agent is proven before it is run by [`attach`]: more than what makes the kernel take it for a program.
pub const HEAD_LEN: usize = 4096;

/// The command that becomes the agent with this hash in its serving mode, on a host that has it. `head` are its first [`HEAD_LEN`]
/// bytes. What answers must be asked for its own hash: the rest of the file may have been damaged. Where nothing answers,
/// [`push_agent`] knows why.
pub fn attach(hash: blake3::Hash, head: &[u8]) -> Command {
    let mut command = Command::new(ATTACH);
    let sum = data_encoding::HEXLOWER.encode(&Sha256::digest(head));
    for text in [hash.to_hex().as_str(), &sum].iter().chain(&DIRECTORIES) {
        command = command.word(own_word(text));
    }
    command
}

/// Makes sure that the agent with this content is on the host and runs there.
///
/// `hash` is the BLAKE3 of `bytes`, `arch` what `uname -m` says on a machine it is built for.
///
/// # Errors
/// When the host is of another architecture, we are not root there, no directory takes it, or the session fails.
pub async fn push_agent(
    session: &Session,
    bytes: &[u8],
    hash: blake3::Hash,
    arch: &str,
) -> Result<AgentPath, Error> {
    let words = Words::of(bytes, hash);
    let look = words.command(LOOK, &DIRECTORIES);
    let output = session
        .run("looking for the agent", &look, b"", PROBE)
        .await?;
    if let Some(directory) = read_look(session, output, arch)? {
        return words.placed(session, &directory, false);
    }
    let mut left: Vec<&str> = DIRECTORIES.to_vec();
    let mut tried = Vec::new();
    while !left.is_empty() {
        let place = words.command(PLACE, &left);
        let bounds = Bounds {
            // Even a line of 64 KiB/s gets an agent of a few megabytes across.
            timeout: Duration::from_secs(60 + bytes.len() as u64 / (64 * 1024)),
            ..PROBE
        };
        let output = session
            .run("placing the agent", &place, bytes, bounds)
            .await?;
        let output = output.success(session.host(), "placing the agent")?;
        match read_place(&String::from_utf8_lossy(&output.stdout), &mut tried) {
            Placed::At(directory) => return words.placed(session, &directory, true),
            // The next round starts behind the directory that failed with the bytes already taken.
            Placed::Lost(directory) => {
                let behind = left.iter().position(|left| *left == directory);
                left.drain(..=behind.unwrap_or(left.len() - 1));
            }
            Placed::Nowhere => left.clear(),
        }
    }
    Err(Error::AgentNowhere {
        host: session.host().to_owned(),
        tried,
    })
}

/// The parts of both commands that depend on the agent.
struct Words {
    hash: String,
    size: u64,
    sum: String,
}

impl Words {
    fn of(bytes: &[u8], hash: blake3::Hash) -> Self {
        Self {
            hash: hash.to_hex().to_string(),
            size: bytes.len() as u64,
            sum: data_encoding::HEXLOWER.encode(&Sha256::digest(bytes)),
        }
    }

    fn command(&self, script: &'static str, directories: &[&str]) -> Command {
        let mut command = Command::new(script);
        let texts = [self.hash.as_str(), &self.size.to_string(), &self.sum];
        for text in texts.iter().chain(directories) {
            command = command.word(own_word(text));
        }
        command
    }

    fn placed(&self, session: &Session, directory: &str, pushed: bool) -> Result<AgentPath, Error> {
        // The directory comes back from the host: it must be one of ours.
        let known = DIRECTORIES.into_iter().find(|known| *known == directory);
        let path = known.and_then(|known| Word::new(&format!("{known}/{}", self.hash)).ok());
        match path {
            Some(path) => Ok(AgentPath { path, pushed }),
            None => Err(Error::CommandFailed {
                host: session.host().to_owned(),
                what: "placing the agent",
                status: "a strange answer".to_owned(),
                stderr: directory.chars().take(200).collect(),
            }),
        }
    }
}

fn own_word(text: &str) -> Word {
    match Word::new(text) {
        Ok(word) => word,
        Err(error) => unreachable!("hex, digits and our own directories are words: {error}"),
    }
}

/// What the look found: the directory that has the agent, if any.
fn read_look(session: &Session, output: Output, arch: &str) -> Result<Option<String>, Error> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = || session.host().to_owned();
    let field = |name: &str| {
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
    };
    if field("tallybook").is_none() {
        if session.becomes_root() {
            return Err(Error::NotRoot {
                host: host(),
                detail: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        output.success(session.host(), "looking for the agent")?;
        return Err(Error::CommandFailed {
            host: host(),
            what: "looking for the agent",
            status: "no answer from a POSIX shell".to_owned(),
            stderr: text.chars().take(200).collect(),
        });
    }
    if let Some(theirs) = field("machine").filter(|theirs| theirs != arch) {
        return Err(Error::Architecture {
            host: host(),
            theirs,
            ours: arch.to_owned(),
        });
    }
    if let Some(id) = field("id").filter(|id| id != "0") {
        return Err(Error::NotRoot {
            host: host(),
            detail: format!("the user id there is {id}"),
        });
    }
    Ok(field("found"))
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Placed {
    At(String),
    Lost(String),
    Nowhere,
}

pub(super) fn read_place(text: &str, tried: &mut Vec<Refused>) -> Placed {
    for line in text.lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "placed" {
            return Placed::At(rest.to_owned());
        }
        if word != "skip" && word != "lost" {
            continue;
        }
        let (directory, why) = rest.split_once(' ').unwrap_or((rest, ""));
        let (stage, detail) = why.split_once(": ").unwrap_or((why, ""));
        tried.push(Refused {
            directory: directory.to_owned(),
            obstacle: obstacle(stage.trim_end_matches(':'), detail),
            detail: detail.trim().to_owned(),
        });
        if word == "lost" {
            return Placed::Lost(directory.to_owned());
        }
    }
    Placed::Nowhere
}

/// The scripts run under LC_ALL=C, so these words are what every libc says.
fn obstacle(stage: &str, detail: &str) -> Obstacle {
    let says = |text: &str| detail.contains(text);
    if stage == "damaged" {
        Obstacle::Damaged
    } else if says("No space left") || says("quota exceeded") {
        Obstacle::Full
    } else if says("Read-only file system") {
        Obstacle::ReadOnly
    } else if stage == "exec" && says("ermission denied") {
        Obstacle::NoExec
    } else if says("ermission denied") || says("not permitted") {
        Obstacle::Permission
    } else {
        Obstacle::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_says_is_read() {
        let mut tried = Vec::new();
        let text = "skip /a exec: sh: 1: /a/.new.x: Permission denied\n\
                    skip /b make: mkdir: cannot create directory: Read-only file system\n\
                    lost /c write: cat: write error: No space left on device\n";
        assert_eq!(read_place(text, &mut tried), Placed::Lost("/c".to_owned()));
        let obstacles: Vec<_> = tried.iter().map(|refused| refused.obstacle).collect();
        assert_eq!(
            obstacles,
            [Obstacle::NoExec, Obstacle::ReadOnly, Obstacle::Full]
        );
        assert_eq!(tried[0].directory, "/a");
        assert_eq!(
            read_place("placed /a\n", &mut tried),
            Placed::At("/a".to_owned())
        );
        assert_eq!(read_place("noise\n", &mut tried), Placed::Nowhere);
    }

    #[test]
    fn an_empty_reason_is_still_a_reason() {
        let mut tried = Vec::new();
        assert_eq!(read_place("skip /a make: \n", &mut tried), Placed::Nowhere);
        assert_eq!(tried[0].obstacle, Obstacle::Other);
    }
}
