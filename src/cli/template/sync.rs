//! `tallybook template sync`.

use tallybook_events::ids::Generation;
use tallybook_events::intent::Intent;
use tallybook_events::name::{HostName, TemplateName};
use tallybook_events::subject::Subject;
use tallybook_replay::state::State;

use super::super::act::{self, ActOptions, PaceOptions, Wish};
use super::super::argument::distinct;
use super::super::{Context, Error, Exit, resolve};
use crate::plan;
use crate::plan::container::Known;
use crate::plan::template::sync;
use crate::render::Output;

/// Bring a generation of a template to hosts: only what they lack is sent, all of it is verified
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook template sync web --to cn2 cn3")]
pub(super) struct Args {
    /// The template
    template: TemplateName,
    /// The hosts to bring it to
    #[arg(long, value_name = "HOST", required = true, num_args = 1..)]
    to: Vec<HostName>,
    /// The host that has it; any that does unless given
    #[arg(long, value_name = "HOST")]
    from: Option<HostName>,
    /// The generation; the newest unless given
    #[arg(long, value_name = "N")]
    generation: Option<u32>,
    #[command(flatten)]
    pace: PaceOptions,
    #[command(flatten)]
    options: ActOptions,
}

impl Args {
    fn origin(&self, state: &State, to: &[HostName]) -> Result<(Generation, HostName), Error> {
        resolve::template(state, &self.template)?;
        let nowhere = || {
            Error::from(plan::Error::TemplateNowhere {
                template: self.template.clone(),
                generation: self.generation.map(Generation),
            })
        };
        let generation = match self.generation {
            Some(generation) => Generation(generation),
            None => {
                let newest = state.newest_generation(&self.template, self.from.as_ref());
                newest
                    .map(|(generation, _)| generation)
                    .ok_or_else(nowhere)?
            }
        };
        if let Some(from) = &self.from {
            return Ok((generation, from.clone()));
        }
        let known = state.templates.get(&(self.template.clone(), generation));
        let mut hosts = known.into_iter().flat_map(|known| &known.hosts);
        let from = hosts.find(|host| !to.contains(host));
        let from = from.or_else(|| known.and_then(|known| known.hosts.first()));
        Ok((generation, from.ok_or_else(nowhere)?.clone()))
    }
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let loaded = context.load_inventory()?;
        let to = distinct(self.to.clone());
        let options = self.options.clone().paced(&self.pace);
        act::operate(context, out, &options, &loaded, None, |state, _| {
            let (generation, from) = self.origin(state, &to)?;
            let known = Known {
                inventory: &loaded.inventory,
                state,
            };
            Ok(Wish {
                steps: sync(known, &self.template, generation, &from, &to)?,
                claims: vec![Subject::Template(self.template.clone())],
                intent: Intent::TemplateSync {
                    template: self.template.clone(),
                    generation,
                    from,
                    to: to.clone(),
                },
            })
        })
        .await
    }
}
