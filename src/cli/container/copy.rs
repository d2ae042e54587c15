//! `tallybook container copy`.

use tallybook_events::intent::Intent;
use tallybook_events::name::{ContainerName, HostName};

use super::super::act::{self, ActOptions, Needs, Wish};
use super::super::{ContainerArgument, Context, Error, Exit, resolve};
use super::create::only;
use crate::plan;
use crate::plan::container::{Known, Place, copy};
use crate::render::Output;

/// Copy a container to another host, or beside itself under another name; the copy has an identity of its own
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook container copy shop --to cn2\n  tallybook container copy cn1/shop --to cn1 --as shop2"
)]
pub(super) struct Args {
    /// The container to copy: NAME or HOST/NAME
    container: ContainerArgument,
    /// The host to copy it to
    #[arg(long, value_name = "HOST")]
    to: HostName,
    /// The copy's name; the same unless given
    #[arg(long = "as", value_name = "NEW")]
    copy: Option<ContainerName>,
    #[command(flatten)]
    options: ActOptions,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let loaded = context.load_inventory()?;
        let state = context.state_or_empty().await?;
        let containers = state.containers.keys();
        let (from, container) = resolve::container(containers, &self.container, "in the log")?;
        if !loaded.inventory.hosts.contains_key(&self.to) {
            return Err(plan::Error::HostUnknown(self.to).into());
        }
        let name = self.copy.clone().unwrap_or_else(|| container.clone());
        // The copy is what the inventory says of it; else what it says of the original, with nothing that is its own.
        let mut inventory = loaded.inventory.clone();
        let listed = inventory.containers.get(&name);
        let spec = match listed.filter(|listed| listed.host == self.to) {
            Some(listed) => listed.clone(),
            None => {
                let original = inventory.containers.get(&container);
                let Some(mut spec) = original.cloned() else {
                    return Err(plan::Error::ContainerUnknown {
                        host: from,
                        container,
                    }
                    .into());
                };
                spec.host = self.to.clone();
                spec.address = None;
                spec.mac = None;
                for port in &mut spec.ports {
                    port.host = None;
                }
                spec
            }
        };
        inventory.containers.insert(name.clone(), spec.clone());
        // A copy has been provisioned with its original.
        let spec = crate::cloud::inventory::Container {
            provision: Vec::new(),
            ..spec
        };
        let needs = Needs {
            inventory: &inventory,
            selection: only(&name),
        };
        act::operate(
            context,
            out,
            &self.options,
            &loaded,
            Some(needs),
            |state, id| {
                let source = Place {
                    host: &from,
                    container: &container,
                };
                let target = Place {
                    host: &self.to,
                    container: &name,
                };
                let known = Known {
                    inventory: &loaded.inventory,
                    state,
                };
                Ok(Wish {
                    steps: copy(known, id, source, target, &spec)?,
                    claims: vec![target.subject(), source.subject()],
                    intent: Intent::ContainerCopy {
                        container: container.clone(),
                        from: from.clone(),
                        to: self.to.clone(),
                        copy: name.clone(),
                    },
                })
            },
        )
        .await
    }
}
