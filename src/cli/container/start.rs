//! `tallybook container start`.

use tallybook_events::intent::Intent;

use super::super::act::{self, ActOptions, Wish};
use super::super::{ContainerArgument, Context, Error, Exit, resolve};
use crate::plan::container::{Known, Place, start};
use crate::render::Output;

/// Start a container and wait for its address
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The container: NAME or HOST/NAME
    container: ContainerArgument,
    #[command(flatten)]
    options: ActOptions,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
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
                steps: start(known, place)?,
                claims: vec![place.subject()],
                intent: Intent::ContainerStart { container, host },
            })
        })
        .await
    }
}
