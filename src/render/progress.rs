//! How far an operation is: live lines on a terminal, plain lines when piped, JSON lines for programs.
//!
//! For whoever looks on; what happened is in the log.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tallybook_events::ids::StepIndex;

use super::{Format, bytes, plain};
use crate::clock;
use crate::engine::watch::{Notice, Watch};

/// Beyond this a total is shown as bytes: nothing else is counted that high.
const COUNT_MAX: u64 = 100_000;

/// Shows notices.
#[derive(Clone)]
pub struct Progress {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    format: Format,
    /// Whether standard output is somebody else's.
    aside: bool,
    live: Option<MultiProgress>,
    bars: BTreeMap<StepIndex, ProgressBar>,
    /// Which tenth of a step was told last, where there are no live lines.
    tenths: BTreeMap<StepIndex, Option<u64>>,
    steps: usize,
    ended: usize,
}

impl Progress {
    /// For this format; live when standard error is a terminal.
    pub fn new(format: Format) -> Self {
        Self::on(format, false)
    }

    /// The same, where standard output is not ours: JSON goes to standard error, too.
    pub fn aside(format: Format) -> Self {
        Self::on(format, true)
    }

    fn on(format: Format, aside: bool) -> Self {
        let live = format == Format::Table && std::io::stderr().is_terminal();
        let live = live.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Progress {
            inner: Arc::new(Mutex::new(Inner {
                format,
                aside,
                live,
                bars: BTreeMap::new(),
                tenths: BTreeMap::new(),
                steps: 0,
                ended: 0,
            })),
        }
    }

    /// To hand to the engine.
    pub fn watch(&self) -> Watch {
        let inner = Arc::clone(&self.inner);
        Arc::new(move |notice| {
            inner
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(notice);
        })
    }

    /// An operation of so many steps is taken up again, so many of which are done.
    pub fn resume(&self, steps: usize, done: usize) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        (inner.steps, inner.ended) = (steps, done);
    }

    /// Takes the live lines away.
    pub fn finish(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for bar in std::mem::take(&mut inner.bars).into_values() {
            bar.finish_and_clear();
        }
    }
}

impl Inner {
    fn take(&mut self, notice: &Notice) {
        if self.format == Format::Json {
            if let Ok(line) = serde_json::to_string(notice) {
                let _closed = match self.aside {
                    true => writeln!(std::io::stderr(), "{line}"),
                    false => writeln!(std::io::stdout(), "{line}"),
                };
            }
            return;
        }
        match notice {
            Notice::Planned { steps, .. } => {
                self.steps = *steps;
                self.ended = 0;
            }
            Notice::Started {
                step,
                host,
                summary,
            } => self.begin(*step, format!("{host}: {}", plain(summary))),
            Notice::Progress {
                step,
                host,
                what,
                done,
                total,
            } => self.progress(*step, &format!("{host}: {}", plain(what)), *done, *total),
            Notice::Succeeded {
                step,
                host,
                summary,
                changed,
            } => {
                let mark = if *changed { "done" } else { "same" };
                self.end(*step, &format!("{mark}  {host}: {}", plain(summary)));
            }
            Notice::Failed {
                step,
                host,
                summary,
                message,
            } => {
                let text = format!("FAIL  {host}: {}: {}", plain(summary), plain(message));
                self.end(*step, &text);
            }
            Notice::Waiting {
                host,
                step,
                operation: _,
                since_unix_us,
            } => {
                let what = match step {
                    Some(step) => {
                        format!(
                            "step {step} still runs since {}",
                            clock::rfc3339(*since_unix_us)
                        )
                    }
                    None => "an earlier agent still works".to_owned(),
                };
                self.line(&format!("wait  {host}: {what}"));
            }
            Notice::Claimed {
                subject,
                holder,
                summary,
                status,
            } => {
                let (holder, summary) = (holder.short(), plain(summary));
                self.line(&format!(
                    "wait  {subject} is held by operation {holder} ({summary}, {status})"
                ));
            }
            Notice::Resolved { step, host, how } => {
                self.line(&format!("look  {host}: step {step}: {}", plain(how)));
            }
            Notice::Unreachable { host, why } => {
                // The rest of a long reason is told at the end.
                let why = why.lines().next().unwrap_or_default();
                self.line(&format!("gone  {host}: {}", plain(why)));
            }
            Notice::Queued { .. } => {
                self.line("wait  the daemon carries out as many others as it does at once");
            }
            Notice::Stopping => {
                self.line("stop  finishing what runs; once more leaves at once");
            }
        }
    }

    fn begin(&mut self, step: StepIndex, what: String) {
        let Some(live) = &self.live else {
            self.line(&format!("....  {what}"));
            return;
        };
        if let Some(earlier) = self.bars.remove(&step) {
            earlier.finish_and_clear();
        }
        let bar = live.add(ProgressBar::new_spinner());
        bar.enable_steady_tick(std::time::Duration::from_millis(120));
        bar.set_message(what);
        self.bars.insert(step, bar);
    }

    fn progress(&mut self, step: StepIndex, what: &str, done: u64, total: u64) {
        if self.live.is_none() {
            // A line for each tenth: whoever reads this later wants to see that it went on, not every piece.
            let tenth = done.saturating_mul(10).checked_div(total);
            if tenth.is_some() && self.tenths.insert(step, tenth) != Some(tenth) {
                self.line(&format!("....  {what} {}", amount(done, total)));
            }
            return;
        }
        let Some(bar) = self.bars.get(&step) else {
            return;
        };
        if total > 0 && bar.length() != Some(total) {
            bar.set_length(total);
            let template = "      {msg} [{bar:20}] {percent}% eta {eta}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
        }
        bar.set_position(done);
        bar.set_message(match total {
            0 => what.to_owned(),
            total => format!("{what} {}", amount(done, total)),
        });
    }

    fn end(&mut self, step: StepIndex, text: &str) {
        self.ended += 1;
        if let Some(bar) = self.bars.remove(&step) {
            bar.finish_and_clear();
        }
        let counted = format!("[{}/{}]", self.ended, self.steps.max(self.ended));
        self.line(&format!("{text} {counted}"));
    }

    fn line(&self, text: &str) {
        match &self.live {
            Some(live) => drop(live.println(text)),
            None => drop(writeln!(std::io::stderr(), "{text}")),
        }
    }
}

fn amount(done: u64, total: u64) -> String {
    if total > COUNT_MAX {
        format!("{} of {}", bytes(done), bytes(total))
    } else {
        format!("{done} of {total}")
    }
}
