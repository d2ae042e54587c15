//! What the host's own server answers, by questions to it: the serials of zones, as each view has them.

use std::collections::BTreeMap;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use tallybook_events::step::{FailureClass, StepFailure};

use super::files::ASKS_FROM_OUTSIDE;
use super::server::UNIT;
use super::{DomainName, View};
use crate::step::{Context, Program, fail};

/// How long it may take until the server answers as it is told to.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is asked.
const POLL: Duration = Duration::from_millis(100);

/// The serials of zones, as each view has them.
pub type Serials = BTreeMap<DomainName, BTreeMap<View, u32>>;

/// Asks the host's own server for the serial of each zone, as each view has it.
fn ask(context: &mut Context<'_>, zones: &Serials) -> Result<Serials, StepFailure> {
    let mut answers = Serials::new();
    for view in View::ALL {
        let from = match view {
            View::Inside => "127.0.0.1",
            View::Outside => ASKS_FROM_OUTSIDE,
        };
        let question = |zone: &DomainName| {
            format!("@127.0.0.1 -b {from} {zone}. SOA +norecurse +noall +answer +tries=1 +time=2\n")
        };
        let questions: String = zones.keys().map(question).collect();
        // Status 9 says that nobody answered, and shows in what is missing.
        let ended = context
            .link
            .run(&Program::new(["dig", "-f", "-"]).stdin(questions))?;
        let said = String::from_utf8_lossy(&ended.stdout);
        for line in said.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [zone, _, "IN", "SOA", _, _, serial, ..] = words[..] else {
                continue;
            };
            if let (Ok(zone), Ok(serial)) = (zone.parse(), serial.parse()) {
                answers.entry(zone).or_default().insert(view, serial);
            }
        }
    }
    Ok(answers)
}

/// A zone of which the server does not answer as it must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lag {
    zone: DomainName,
    view: View,
    wanted: u32,
    found: Option<u32>,
}

impl fmt::Display for Lag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lag {
            zone,
            view,
            wanted,
            found,
        } = self;
        let view = view.label();
        write!(
            f,
            "seen from {view}, {zone} must have the serial {wanted}, and the DNS server "
        )?;
        match found {
            Some(found) => write!(f, "answers with {found}"),
            None => f.write_str("does not answer for it"),
        }
    }
}

/// The first zone of which the host's own server does not answer with these serials.
///
/// # Errors
/// When it can't be asked.
pub fn lags(context: &mut Context<'_>, wanted: &Serials) -> Result<Option<Lag>, StepFailure> {
    Ok(all_lags(context, wanted)?.into_iter().next())
}

fn all_lags(context: &mut Context<'_>, wanted: &Serials) -> Result<Vec<Lag>, StepFailure> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let answers = ask(context, wanted)?;
    let mut lags = Vec::new();
    for (zone, views) in wanted {
        for (view, wanted) in views {
            let found = answers.get(zone).and_then(|of| of.get(view)).copied();
            if found.is_none_or(|found| is_older(found, *wanted)) {
                lags.push(Lag {
                    zone: zone.clone(),
                    view: *view,
                    wanted: *wanted,
                    found,
                });
            }
        }
    }
    Ok(lags)
}

/// Whether a serial is before another one (RFC 1982, 3.2).
const fn is_older(serial: u32, than: u32) -> bool {
    let ahead = than.wrapping_sub(serial);
    0 < ahead && ahead < 1 << 31
}

/// Has the server ask its primaries for what lags, and not when it would by itself.
///
/// # Errors
/// When it can't be asked what lags.
pub fn refresh(context: &mut Context<'_>, wanted: &Serials) -> Result<(), StepFailure> {
    for lag in all_lags(context, wanted)? {
        let (zone, view) = (lag.zone.as_str(), lag.view.label());
        // One that is on its way, or was never there, is not refreshed: what comes of it is waited for all the same.
        context
            .link
            .run(&Program::new(["rndc", "refresh", zone, "IN", view]))?;
    }
    Ok(())
}

/// Waits until the host's own server answers with these serials; `from` is where it has them from, if that is elsewhere.
///
/// # Errors
/// When it does not in time: says for which zone, and what it answers.
pub fn await_serials(
    context: &mut Context<'_>,
    wanted: &Serials,
    from: Option<&str>,
) -> Result<(), StepFailure> {
    let begun = Instant::now();
    while let Some(lag) = lags(context, wanted)? {
        if begun.elapsed() >= TIMEOUT {
            let mut failure = fail(FailureClass::Host, lag.to_string());
            let elsewhere = from.map(|from| {
                format!("it has the zone from {from}: can it reach TCP port 53 there? ")
            });
            let elsewhere = elsewhere.unwrap_or_default();
            failure.hint = Some(format!("{elsewhere}journalctl --unit {UNIT} says more"));
            return Err(failure);
        }
        thread::sleep(POLL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_older;

    #[test]
    fn serials_are_compared_round_the_circle() {
        for (serial, than, wanted) in [
            (1, 2, true),
            (2, 2, false),
            (3, 2, false),
            (u32::MAX, 0, true),
            (0, u32::MAX, false),
        ] {
            assert_eq!(is_older(serial, than), wanted, "{serial} {than}");
        }
    }
}
