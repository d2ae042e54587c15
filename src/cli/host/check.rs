//! `tallybook host check`: whether hosts are as the log says. Changes nothing and records nothing.

use serde::Serialize;
use tallybook_events::ids::OperationId;
use tallybook_events::name::HostName;

use super::super::argument::distinct;
use super::super::{Context, Error, Exit, act};
use crate::causes;
use crate::engine::check::{Found, Looked};
use crate::render::{Cell, Column, Format, Ink, Output, Table, Written, count, plain};

/// Look whether hosts are as the log says; change nothing
///
/// The newest steps whose effect lasts are looked at again: network, directories and packages of hosts; presence, address, ports and
/// state of containers; generations of templates. Each as far as its kind can see: not the content of trees.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook host check cn1 cn2")]
pub(super) struct Args {
    /// The hosts
    #[arg(required = true, value_name = "HOST")]
    hosts: Vec<HostName>,
}

/// What was found, as JSON.
#[derive(Debug, Serialize)]
struct Checked<'a> {
    checked: Vec<CheckedStep<'a>>,
    not_reached: Vec<NotReached<'a>>,
    exit: Exit,
    code: u8,
}

#[derive(Debug, Serialize)]
struct CheckedStep<'a> {
    host: &'a HostName,
    subject: String,
    what: &'a str,
    operation: OperationId,
    step: u32,
    /// `as_recorded`, `drift` or `unknown`.
    found: &'static str,
    /// What was seen, or why it can't be told.
    detail: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct NotReached<'a> {
    host: &'a HostName,
    why: String,
}

impl<'a> From<&'a Looked> for CheckedStep<'a> {
    fn from(looked: &'a Looked) -> Self {
        let (found, detail) = match &looked.found {
            Found::AsRecorded => ("as_recorded", None),
            Found::Drift(what) => ("drift", Some(what.as_str())),
            Found::Unknown(why) => ("unknown", Some(why.as_str())),
        };
        CheckedStep {
            host: &looked.plan.host,
            subject: looked.plan.subject.to_string(),
            what: &looked.plan.summary,
            operation: looked.operation,
            step: looked.plan.index.0,
            found,
            detail,
        }
    }
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let hosts = distinct(self.hosts);
        let answers = act::check(context, out, &hosts).await?;
        let mut checked = Vec::new();
        let mut not_reached = Vec::new();
        for (host, answer) in &answers {
            match answer {
                Ok(looked) => checked.extend(looked.iter().map(CheckedStep::from)),
                Err(error) => not_reached.push(NotReached {
                    host,
                    why: causes::in_line(error),
                }),
            }
        }
        let drifted = checked.iter().filter(|one| one.found == "drift").count();
        let exit = match (drifted, not_reached.is_empty()) {
            (0, true) => Exit::Ok,
            (0, false) => Exit::Unreachable,
            (_, _) => Exit::Drift,
        };
        let view = Checked {
            checked,
            not_reached,
            exit,
            code: exit.code(),
        };
        match out.format() {
            Format::Json => out.json(&view)?,
            Format::Table => show(&view, drifted, out)?,
        }
        Ok(exit)
    }
}

fn show(view: &Checked<'_>, drifted: usize, out: &mut Output) -> Written {
    let columns = ["HOST", "SUBJECT", "WHAT", "FOUND", "DETAIL"];
    let mut table = Table::new(columns.map(Column::left));
    for one in &view.checked {
        let (ink, found) = match one.found {
            "as_recorded" => (Ink::Good, "as recorded"),
            "drift" => (Ink::Bad, "drift"),
            _ => (Ink::Open, "can't tell"),
        };
        table.row([
            Cell::from(one.host),
            one.subject.clone().into(),
            one.what.into(),
            Cell::inked(ink, found),
            Cell::or_dash(one.detail),
        ]);
    }
    out.table(&table)?;
    for one in &view.not_reached {
        out.line(plain(&format!("{}: not looked at: {}", one.host, one.why)))?;
    }
    out.line(format!(
        "{} looked at, {drifted} drifted; nothing was changed",
        count(view.checked.len(), "step")
    ))
}
