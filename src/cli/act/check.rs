//! `host check`: hosts are looked at with the inventory as it is now.

use std::collections::BTreeMap;

use tallybook_events::name::HostName;

use super::super::{Context, Error};
use super::{declared, engine, fleet, settings, target};
use crate::engine::check::OfHost;
use crate::log::Open;
use crate::render::Output;
use crate::render::progress::Progress;

/// Looks whether hosts are as the log says.
///
/// # Errors
/// When the inventory does not have one, or the log can't be read.
pub(in crate::cli) async fn check(
    context: &Context,
    out: &Output,
    hosts: &[HostName],
) -> Result<BTreeMap<HostName, OfHost>, Error> {
    let loaded = context.load_inventory()?;
    for host in hosts {
        target(&loaded.inventory, host, &settings())?;
    }
    let log = context.open_log(Open::Existing).await?;
    let progress = Progress::new(out.format());
    let secrets = declared(&loaded)?;
    let engine = engine(log, fleet(&loaded.inventory)?, &progress, secrets);
    Ok(engine.check(hosts).await?)
}
