//! Steps that do as a test says: note, fail, wait, panic, take part in a transfer.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tallybook_agent::layout::Layout;
use tallybook_agent::step::{Context, Done, Link, OutputOf, Step, StepKind, fail};
use tallybook_events::ids::StepIndex;
use tallybook_events::step::{FailureClass, Seen, SendSource, StepFailure};

/// What a step does besides noting that it was there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Deed {
    /// Nothing else.
    Note,
    /// Fails until this file is there, beside the notes.
    FailWithout(String),
    /// Notes, then waits for this file.
    Await(String),
    /// Waits until it is asked to stop, or for this file; then fails as interrupted, or notes.
    Obey(String),
    /// Panics.
    Panic,
    /// Notes what an earlier step reported.
    Repeat(StepIndex),
    /// Notes, and can't tell afterwards whether it did.
    Blind,
    /// Finds something foreign in the way until this file is there.
    Foreign(String),
    /// Makes a file beside the notes; what is there and not its own is in the way, and stands for it where it says `wanted`.
    Make(String),
    /// Takes pieces from its peer until `end`.
    Receive,
    /// Tells its peer more and more, and hears nothing.
    Flood,
}

/// A step of the tests.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Act {
    pub(crate) text: String,
    pub(crate) deed: Deed,
}

/// The same, to be started only once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Once(pub(crate) Act);

fn file(layout: &Layout, name: &str) -> PathBuf {
    layout.state.join(name)
}

/// What was noted on a host, line by line.
pub(crate) fn notes(layout: &Layout) -> Vec<String> {
    let text = fs::read_to_string(file(layout, "notes")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

pub(crate) fn note(layout: &Layout, text: &str) {
    fs::create_dir_all(&layout.state).unwrap();
    let mut notes = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(file(layout, "notes"))
        .unwrap();
    writeln!(notes, "{text}").unwrap();
}

/// What a file beside the notes says.
pub(crate) fn says(layout: &Layout, name: &str) -> Option<String> {
    fs::read_to_string(file(layout, name)).ok()
}

/// Has somebody else write a file beside the notes.
pub(crate) fn put(layout: &Layout, name: &str, text: &str) {
    fs::create_dir_all(&layout.state).unwrap();
    fs::write(file(layout, name), text).unwrap();
}

/// Puts a file beside the notes that a deed waits for.
pub(crate) fn signal(layout: &Layout, name: &str) {
    fs::create_dir_all(&layout.state).unwrap();
    fs::write(file(layout, name), "").unwrap();
}

fn wait_for(path: &Path, mut also: impl FnMut() -> bool) {
    while !path.exists() && !also() {
        thread::sleep(Duration::from_millis(2));
    }
}

fn done<T>(changed: bool, output: T) -> Done<T> {
    Done {
        changed,
        output,
        facts: Vec::new(),
    }
}

impl Act {
    /// What it writes.
    fn own(&self) -> String {
        format!("made by {}", self.text)
    }
}

impl Step for Act {
    const KIND: &'static str = "test.act";
    type Output = String;

    fn summary(&self) -> String {
        format!("act {}", self.text)
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        match &self.deed {
            Deed::Make(name) => {
                return match fs::read_to_string(file(context.layout, name)) {
                    Ok(text) if text == self.own() => done(false, self.own()).seen(),
                    Ok(text) => Ok(Seen::Conflict {
                        what: format!("{name} says {text}"),
                    }),
                    Err(_) => Ok(Seen::Absent),
                };
            }
            Deed::Blind => {
                return Ok(Seen::Unknown {
                    why: "it leaves no trace".to_owned(),
                });
            }
            Deed::Foreign(name) if !file(context.layout, name).exists() => {
                return Ok(Seen::Conflict {
                    what: "something of somebody else".to_owned(),
                });
            }
            _ => {}
        }
        if notes(context.layout).contains(&self.text) {
            return done(false, format!("made {}", self.text)).seen();
        }
        Ok(Seen::Absent)
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<String>, StepFailure> {
        let mut text = self.text.clone();
        match &self.deed {
            Deed::Note | Deed::Blind | Deed::Foreign(_) => {}
            Deed::Make(name) => {
                let path = file(context.layout, name);
                let there = fs::read_to_string(&path);
                if there.as_ref().is_ok_and(|text| *text != self.own()) {
                    return Err(fail(FailureClass::Exists, format!("{name} is there")));
                }
                fs::write(path, self.own()).unwrap();
            }
            Deed::FailWithout(name) => {
                if !file(context.layout, name).exists() {
                    return Err(fail(FailureClass::Host, format!("{name} is not there")));
                }
            }
            Deed::Await(name) => {
                note(context.layout, &format!("begin {text}"));
                wait_for(&file(context.layout, name), || false);
            }
            Deed::Obey(name) => {
                let (path, link) = (file(context.layout, name), &mut *context.link);
                wait_for(&path, || link.stop_requested());
                if !path.exists() {
                    return Err(fail(FailureClass::Interrupted, "asked to stop"));
                }
            }
            Deed::Panic => panic!("on purpose"),
            Deed::Repeat(step) => {
                let said: String = context.output(&OutputOf::<String>::step(*step))?;
                text = format!("{text} after {said}");
            }
            Deed::Receive => loop {
                let bytes = context.link.receive_peer()?;
                if bytes == b"end" {
                    break;
                }
                context.link.send_peer(bytes)?;
            },
            Deed::Flood => loop {
                context.link.send_peer(vec![0; 64 * 1024])?;
                FLOODED.fetch_add(1, Ordering::SeqCst);
            },
        }
        note(context.layout, &text);
        Ok(done(true, format!("made {}", self.text)))
    }

    fn in_the_way(&self, context: &mut Context<'_>) -> Result<Vec<PathBuf>, StepFailure> {
        let Deed::Make(name) = &self.deed else {
            return Err(fail(FailureClass::Exists, "it sets nothing aside"));
        };
        let path = file(context.layout, name);
        let there = fs::read_to_string(&path).is_ok_and(|text| text != self.own());
        Ok(there.then_some(path).into_iter().collect())
    }

    fn adopt(&self, context: &mut Context<'_>) -> Result<Done<String>, StepFailure> {
        let wanted = match &self.deed {
            Deed::Make(name) => fs::read_to_string(file(context.layout, name)).unwrap_or_default(),
            _ => String::new(),
        };
        match wanted.as_str() {
            "wanted" => Ok(done(true, wanted)),
            other => Err(fail(
                FailureClass::Exists,
                format!("{other:?} is not wanted"),
            )),
        }
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        output: Option<String>,
    ) -> Result<Done<()>, StepFailure> {
        if let Deed::FailWithout(name) = &self.deed
            && !file(context.layout, name).exists()
        {
            return Err(fail(FailureClass::Host, format!("{name} is not there")));
        }
        if let Deed::Make(name) = &self.deed {
            let path = file(context.layout, name);
            if fs::read_to_string(&path).is_ok_and(|text| text == self.own()) {
                fs::remove_file(path).unwrap();
            }
        }
        let said = output.as_deref().unwrap_or("nobody knows what");
        let text = format!("undo {}: {said}", self.text);
        if !notes(context.layout).contains(&text) {
            note(context.layout, &text);
        }
        Ok(done(true, ()))
    }
}

impl Step for Once {
    const KIND: &'static str = "test.once";
    const ONCE: bool = true;
    type Output = String;

    fn summary(&self) -> String {
        self.0.summary()
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        self.0.probe(context)
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<String>, StepFailure> {
        self.0.forward(context)
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        output: Option<String>,
    ) -> Result<Done<()>, StepFailure> {
        self.0.undo(context, output)
    }
}

pub(crate) static TABLE: [StepKind; 2] = [StepKind::of::<Act>(), StepKind::of::<Once>()];

/// How many pieces were let go in a flood.
pub(crate) static FLOODED: AtomicU32 = AtomicU32::new(0);

/// Sends three pieces, each answered, and the end; refuses where the file `empty` is there. Where `deaf` is there, it
/// hears nothing after the first; where `held` is there, it waits for `go` after the first.
pub(crate) fn send(
    _: &SendSource,
    layout: &Layout,
    link: &mut dyn Link,
) -> Result<(), StepFailure> {
    if file(layout, "empty").exists() {
        return Err(fail(FailureClass::Missing, "there is nothing to send"));
    }
    for piece in 0..3_u8 {
        link.send_peer(vec![piece; 1000])?;
        if file(layout, "deaf").exists() {
            wait_for(&file(layout, "go"), || link.stop_requested());
        }
        link.receive_peer()?;
        if file(layout, "held").exists() && piece == 0 {
            note(layout, "held");
            wait_for(&file(layout, "go"), || link.stop_requested());
        }
    }
    link.send_peer(b"end".to_vec())
}
