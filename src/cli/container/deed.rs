//! What `start`, `stop`, `restart` and `destroy` share: one container that the log knows, one plan for it.
//!
//! What differs between them is in their own files.

use tallybook_events::intent::Intent;
use tallybook_events::name::{ContainerName, HostName};
use tallybook_events::step::PlannedStep;

use super::super::act::{self, ActOptions, Wish};
use super::super::{ContainerArgument, Context, Error, Exit, resolve};
use crate::plan;
use crate::plan::container::{Known, Place};
use crate::render::Output;

/// What each of them takes.
#[derive(Debug, clap::Args)]
pub(super) struct Deed {
    /// The container: NAME or HOST/NAME
    container: ContainerArgument,
    #[command(flatten)]
    options: ActOptions,
}

/// Makes the plan.
type Planner = fn(Known<'_>, Place<'_>) -> Result<Vec<PlannedStep>, plan::Error>;

impl Deed {
    pub(super) async fn run(
        self,
        context: &Context,
        out: &mut Output,
        plan: Planner,
        intent: fn(ContainerName, HostName) -> Intent,
    ) -> Result<Exit, Error> {
        let loaded = context.load_inventory()?;
        act::operate(context, out, &self.options, &loaded, None, |state, _| {
            let containers = state.containers.keys();
            let (host, container) = resolve::container(containers, &self.container, "in the log")?;
            let place = Place {
                host: &host,
                container: &container,
            };
            let known = Known {
                inventory: &loaded.inventory,
                state,
            };
            Ok(Wish {
                steps: plan(known, place)?,
                claims: vec![place.subject()],
                intent: intent(container, host),
            })
        })
        .await
    }
}
