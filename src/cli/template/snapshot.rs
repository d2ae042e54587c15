//! `tallybook template snapshot`.

use tallybook_events::intent::Intent;
use tallybook_events::name::TemplateName;
use tallybook_events::subject::Subject;

use super::super::act::{self, ActOptions, Wish};
use super::super::{ContainerArgument, Context, Error, Exit, resolve};
use crate::plan::container::{Known, Place};
use crate::plan::template::{Exceptions, next_generation, snapshot};
use crate::render::Output;

/// Make the next generation of a template from a container: copied, scrubbed, searched for leaks, published
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook template snapshot web\n  tallybook template snapshot web --from cn1/builder --keep logs"
)]
pub(super) struct Args {
    /// The template
    template: TemplateName,
    /// The container: NAME or HOST/NAME; the inventory's builder unless given
    #[arg(long, value_name = "CONTAINER")]
    from: Option<ContainerArgument>,
    /// Leave a scrub operation out, by name; may be repeated
    #[arg(long, value_name = "OPERATION")]
    keep: Vec<String>,
    /// Let a finding of the leak scan pass, as RULE or RULE:/PATH; may be repeated
    #[arg(long, value_name = "RULE")]
    allow: Vec<String>,
    #[command(flatten)]
    options: ActOptions,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let loaded = context.load_inventory()?;
        let listed = loaded.inventory.templates.get(&self.template);
        let builder = listed.and_then(|template| template.builder.clone());
        let from = match (&self.from, builder) {
            (Some(from), _) => from.clone(),
            (None, Some(name)) => ContainerArgument { host: None, name },
            (None, None) => {
                return Err(Error::Unknown {
                    what: "builder",
                    name: self.template.to_string(),
                    place: Some("in the inventory".to_owned()),
                    nearest: None,
                    hint: Some("name the container with --from"),
                });
            }
        };
        let mut exceptions = Exceptions {
            keep: self.keep.clone(),
            allow: self.allow.clone(),
        };
        if let Some(template) = listed {
            let keep = template.scrub_keep.iter().map(ToString::to_string);
            exceptions.keep.extend(keep);
        }
        act::operate(context, out, &self.options, &loaded, None, |state, _| {
            let containers = state.containers.keys();
            let (host, container) = resolve::container(containers, &from, "in the log")?;
            let place = Place {
                host: &host,
                container: &container,
            };
            let known = Known {
                inventory: &loaded.inventory,
                state,
            };
            let generation = next_generation(state, &self.template);
            Ok(Wish {
                steps: snapshot(known, &self.template, generation, place, &exceptions)?,
                claims: vec![Subject::Template(self.template.clone()), place.subject()],
                intent: Intent::TemplateSnapshot {
                    template: self.template.clone(),
                    container: container.clone(),
                    host: host.clone(),
                    generation,
                },
            })
        })
        .await
    }
}
