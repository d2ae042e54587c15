//! `tallybook dns show`: the records of zones, from the inventory and what is recorded or would be.

use std::collections::BTreeMap;

use serde::Serialize;
use tallybook_agent::dns::files::Text;

use super::super::context::select;
use super::super::{Context, Error, Exit, resolve};
use crate::cloud::dns::{DomainName, View, Zone};
use crate::cloud::inventory::Inventory;
use crate::cloud::zones::{self, Contents, Line};
use crate::cloud_log;
use crate::plan;
use crate::render::{Cell, Column, Format, Output, Table, Written};

/// Show the records of zones, as each view has them
///
/// `inside` is what hosts and containers are answered, `outside` what everybody else is.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook dns show\n  tallybook dns show example.net --view outside\n  tallybook dns show example.net --view inside --file"
)]
pub(super) struct Args {
    /// Only this zone
    zone: Option<DomainName>,
    /// Only what is seen from there
    #[arg(long, value_enum)]
    view: Option<ViewArgument>,
    /// As a zone's file has it, with the serial 1
    #[arg(long, requires = "zone", requires = "view")]
    file: bool,
}

/// From where names are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ViewArgument {
    Inside,
    Outside,
}

impl ViewArgument {
    const fn view(self) -> View {
        match self {
            ViewArgument::Inside => View::Inside,
            ViewArgument::Outside => View::Outside,
        }
    }
}

/// A zone, as JSON.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    zone: &'a DomainName,
    #[serde(flatten)]
    about: &'a Zone,
    views: BTreeMap<View, Vec<Line>>,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        out.page();
        let loaded = context.load_inventory()?;
        let inventory = &loaded.inventory;
        let state = context.state_or_empty().await?;
        let outcome = cloud_log::plan(&state, inventory, &select(inventory, None)?)?;
        let mut zones = zones::zones(inventory, &outcome.allocations());
        if let Some(wanted) = &self.zone {
            refuse_unknown(inventory, wanted)?;
            zones.retain(|name, _| name == wanted);
        }
        if let Some(view) = self.view {
            zones
                .values_mut()
                .for_each(|it| it.retain(|of, _| *of == view.view()));
        }
        match out.format() {
            Format::Json => out.json(&shown(inventory, &zones))?,
            Format::Table if self.file => files(inventory, &zones, out)?,
            Format::Table => {
                table(inventory, &zones, out)?;
                for (zone, view, server) in zones::without_address(&zones) {
                    let view = view.label();
                    out.line(format!(
                        "{server} is a server of {zone} and has no address, seen from {view}"
                    ))?;
                }
                if self.zone.is_none() {
                    for (domain, why) in zones::untold(inventory, &zones) {
                        out.line(format!("{domain} has no record: {why}"))?;
                    }
                }
            }
        }
        Ok(Exit::Ok)
    }
}

fn refuse_unknown(inventory: &Inventory, wanted: &DomainName) -> Result<(), Error> {
    if inventory.zones.contains_key(wanted) {
        return Ok(());
    }
    let known = inventory.zones.keys().map(DomainName::as_str);
    Err(Error::Unknown {
        what: "zone",
        name: wanted.to_string(),
        place: Some("in the inventory".to_owned()),
        nearest: resolve::nearest(wanted.as_str(), known),
        hint: Some("`tallybook dns show` shows all"),
    })
}

type Zones = BTreeMap<DomainName, Contents>;

fn shown<'a>(inventory: &'a Inventory, zones: &'a Zones) -> Vec<Shown<'a>> {
    let zone = |(name, contents): (&'a DomainName, &'a Contents)| {
        let about = inventory.zones.get(name)?;
        let line = |line: &Line| Line {
            ttl_s: line.ttl_s.or(Some(about.times.ttl_s)),
            ..line.clone()
        };
        let views = contents.iter();
        let views = views.map(|(view, lines)| (*view, lines.iter().map(line).collect()));
        Some(Shown {
            zone: name,
            about,
            views: views.collect(),
        })
    };
    zones.iter().filter_map(zone).collect()
}

fn files(inventory: &Inventory, zones: &Zones, out: &mut Output) -> Result<(), Error> {
    for (name, contents) in zones {
        let Some(zone) = inventory.zones.get(name) else {
            continue;
        };
        for (view, lines) in contents {
            let records = zones::records(name, *view, lines).map_err(plan::Error::from)?;
            let text = Text::new(name, &zones::soa(name, zone), &records);
            out.line(text.with_serial(1).trim_end())?;
        }
    }
    Ok(())
}

fn table(inventory: &Inventory, zones: &Zones, out: &mut Output) -> Written {
    let mut table = Table::new([
        Column::left("ZONE"),
        Column::left("NAME"),
        Column::right("TTL"),
        Column::left("TYPE"),
        Column::left("VALUE"),
        Column::left("SEEN FROM"),
    ]);
    for (name, contents) in zones {
        let ttl_s = inventory.zones.get(name).map_or(0, |zone| zone.times.ttl_s);
        let mut seen: BTreeMap<&Line, Vec<&'static str>> = BTreeMap::new();
        for (view, lines) in contents {
            for line in lines {
                seen.entry(line).or_default().push(view.label());
            }
        }
        for (line, views) in seen {
            let from = match (views.len(), contents.len()) {
                (2, 2) => "everywhere",
                _ => views.first().copied().unwrap_or_default(),
            };
            table.row([
                Cell::from(name),
                Cell::from(&line.name),
                line.ttl_s.unwrap_or(ttl_s).into(),
                line.data.kind().into(),
                line.data.to_string().into(),
                from.into(),
            ]);
        }
    }
    out.table(&table)
}
