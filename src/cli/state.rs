//! `tallybook state`: the cloud as the log says it is, or was.

use std::collections::BTreeSet;

use tallybook_events::name::{ContainerName, HostName};
use tallybook_replay::state::State;

use super::argument::Point;
use super::history::{self, Until};
use super::resolve::{self, Entity};
use super::{Context, EntityArgument, Error, Exit, container, host, op, template};
use crate::log::{Error as LogError, Open};
use crate::render::json::{FencedView, InventoryView, StateView};
use crate::render::{Cell, Column, Format, Output, Table, Written, summary};

/// Show the state of the cloud, now or at an earlier point
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook state\n  tallybook state cn1 --at 2026-11-27T12:00:00Z"
)]
pub(super) struct Args {
    /// Only these hosts, containers and templates
    #[arg(value_name = "HOST|CONTAINER|TEMPLATE")]
    names: Vec<EntityArgument>,
    /// As it was after this event, or at this time
    #[arg(long, value_name = "SEQ|TIME")]
    at: Option<Point>,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        out.page();
        let state = match self.at {
            None => context.open_log(Open::Existing).await?.state().await?,
            Some(_) if !context.has_log()? => {
                return Err(LogError::Missing(context.store()?.to_owned()).into());
            }
            Some(point) => {
                let mut state = history::fold(&context.journal()?, Until::from(point))?;
                state.forget_past();
                state
            }
        };
        let mut entities = Vec::new();
        for name in &self.names {
            entities.push(resolve::entity(&state, &[], name)?);
        }
        let mut view = StateView::from(&state);
        if !entities.is_empty() {
            narrow(&mut view, &entities);
        }
        match out.format() {
            Format::Json => out.json(&view)?,
            Format::Table => show(&view, &state, out)?,
        }
        Ok(Exit::Ok)
    }
}

/// Leaves only what was asked for. A host brings its containers.
fn narrow(view: &mut StateView, entities: &[Entity]) {
    let has_host = |name: &HostName| {
        let mut entities = entities.iter();
        entities.any(|entity| matches!(entity, Entity::Host(host) if host == name))
    };
    let has = |host: &HostName, name: &ContainerName| {
        let mut entities = entities.iter();
        has_host(host)
            || entities.any(|entity| matches!(entity, Entity::Container((on, one)) if on == host && one == name))
    };
    view.hosts.retain(|host| has_host(&host.name));
    view.containers.retain(|one| has(&one.host, &one.name));
    view.allocations
        .retain(|held| has(&held.host, &held.container));
    view.templates.retain(|template| {
        entities
            .iter()
            .any(|entity| matches!(entity, Entity::Template(name) if *name == template.name))
    });
    let names: Vec<String> = entities.iter().map(ToString::to_string).collect();
    view.claims.retain(|claim| names.contains(&claim.subject));
    view.operations
        .retain(|operation| operation.claims.iter().any(|claim| names.contains(claim)));
}

fn show(view: &StateView, state: &State, out: &mut Output) -> Written {
    let head = &view.head;
    let inventory = match &view.inventory {
        Some(InventoryView { seq, hash: _ }) => format!(", inventory of event {seq}"),
        None => String::new(),
    };
    out.line(format!("after event {}{inventory}", head.seq))?;
    if head.unknown > 0 {
        out.line(format!(
            "{} events are of kinds that this program does not know: something may be missing here",
            head.unknown
        ))?;
    }
    if let Some(FencedView { host, seen }) = &view.fenced {
        out.line(format!(
            "{host} was shown event {} of epoch {}, which this log does not have: nothing may be done to any host with it",
            seen.seq, seen.epoch
        ))?;
    }
    let mut allocations = Table::new([
        Column::left("ALLOCATED TO"),
        Column::left("ADDRESS"),
        Column::left("MAC"),
        Column::left("PORTS"),
    ]);
    for held in &view.allocations {
        let ports = summary::forwards(&held.allocation.forwards);
        allocations.row([
            format!("{}/{}", held.host, held.container).into(),
            Cell::from(&held.allocation.address),
            Cell::or_dash(held.allocation.mac.as_ref()),
            Cell::or_dash(Some(ports).filter(|ports| !ports.is_empty())),
        ]);
    }
    let mut claims = Table::new([Column::left("CLAIMED"), Column::left("BY OPERATION")]);
    for claim in &view.claims {
        claims.row([Cell::from(&claim.subject), claim.operation.short().into()]);
    }
    let is_open: BTreeSet<String> = state
        .operations
        .iter()
        .filter(|(_, known)| known.is_open())
        .map(|(id, _)| id.to_string())
        .collect();
    let open: Vec<_> = view
        .operations
        .iter()
        .filter(|operation| is_open.contains(&operation.id))
        .cloned()
        .collect();
    let sections = [
        host::table(&view.hosts),
        container::table(&view.containers),
        template::table(&view.templates),
        allocations,
        op::table(&open),
        claims,
    ];
    for section in sections.iter().filter(|section| !section.is_empty()) {
        out.line("")?;
        out.table(section)?;
    }
    Ok(())
}
