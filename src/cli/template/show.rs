//! `tallybook template show`.

use serde::Serialize;
use tallybook_events::name::TemplateName;

use super::super::{Context, Error, Exit, resolve};
use super::list::table;
use crate::log::Open;
use crate::render::json::{self, OriginView, TemplateView};
use crate::render::{Format, Output};

/// Show a template: its generations, and the containers made from each
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tallybook template show web")]
pub(super) struct Args {
    /// The template
    template: TemplateName,
}

#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    generation: TemplateView,
    /// `HOST/NAME` of each container made from it.
    containers: Vec<String>,
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        out.page();
        let state = context.open_log(Open::Existing).await?.state().await?;
        resolve::template(&state, &self.template)?;
        let mut generations = json::templates(&state);
        generations.retain(|known| known.name == self.template);
        let containers = json::containers(&state);
        let made_from = |wanted: &TemplateView| -> Vec<String> {
            let made = containers.iter().filter(|container| {
                matches!(&container.origin, OriginView::Template { template, generation, .. }
                    if *template == wanted.name && *generation == wanted.generation)
            });
            made.map(|container| format!("{}/{}", container.host, container.name))
                .collect()
        };
        match out.format() {
            Format::Json => {
                let shown: Vec<Shown> = generations
                    .into_iter()
                    .map(|generation| Shown {
                        containers: made_from(&generation),
                        generation,
                    })
                    .collect();
                out.json(&shown)?;
            }
            Format::Table => {
                out.table(&table(&generations))?;
                for generation in &generations {
                    let containers = made_from(generation);
                    if !containers.is_empty() {
                        out.line(format!(
                            "generation {} is what {} came from",
                            generation.generation,
                            containers.join(", ")
                        ))?;
                    }
                }
            }
        }
        Ok(Exit::Ok)
    }
}
