//! `tallybook container create`.

use std::collections::BTreeSet;
use std::str::FromStr;

use clap::ValueEnum;
use tallybook_events::fact;
use tallybook_events::ids::Generation;
use tallybook_events::intent::{Intent, Source};
use tallybook_events::name::{self, ContainerName, HostName, TemplateName};
use tallybook_events::subject::Subject;
use tallybook_replay::state::State;

use super::super::act::{self, ActOptions, Needs, Wish};
use super::super::{Context, Error, Exit};
use crate::cloud::Selection;
use crate::cloud::inventory::{self, Inventory};
use crate::plan::container::{Known, Place, create};
use crate::plan::{self};
use crate::render::Output;

/// Make a container of the inventory: from scratch, from a template, or from another container of the host
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook container create shop\n  tallybook container create shop --on cn2 --from web@3 --dry-run"
)]
pub(super) struct Args {
    /// Its name in the inventory
    name: ContainerName,
    /// The host; the inventory's unless given
    #[arg(long, value_name = "HOST")]
    on: Option<HostName>,
    /// A template (TEMPLATE or TEMPLATE@GENERATION) or a container of the host; the inventory's unless given.
    /// `template:` or `container:` before the name says which is meant
    #[arg(long, value_name = "TEMPLATE|CONTAINER")]
    from: Option<From>,
    /// How it is stored; the inventory's unless given
    #[arg(long, value_enum)]
    backing: Option<BackingArgument>,
    #[command(flatten)]
    options: ActOptions,
}

/// How a root file system is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BackingArgument {
    /// What the file system offers.
    Auto,
    /// A plain copy.
    Dir,
    /// A copy that shares its blocks.
    Reflink,
    /// An overlay above a template.
    Overlay,
}

/// What a container is to be made from, as given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct From {
    name: String,
    template: Option<(TemplateName, Option<Generation>)>,
    container: Option<ContainerName>,
}

impl FromStr for From {
    type Err = name::Error;

    fn from_str(text: &str) -> Result<Self, name::Error> {
        let template = |text: &str| -> Result<_, name::Error> {
            let generation = |(name, number): (&str, &str)| {
                let generation = number.parse().ok().map(Generation)?;
                Some((name.to_owned(), generation))
            };
            match text.split_once('@').and_then(generation) {
                Some((name, generation)) => Ok((name.parse()?, Some(generation))),
                None => Ok((text.parse()?, None)),
            }
        };
        let mut from = From {
            name: text.to_owned(),
            template: None,
            container: None,
        };
        match text.split_once(':') {
            Some(("template", rest)) => from.template = Some(template(rest)?),
            Some(("container", rest)) => from.container = Some(rest.parse()?),
            Some(_) | None => {
                from.template = Some(template(text)?);
                from.container = text.parse().ok();
            }
        }
        Ok(from)
    }
}

impl From {
    /// What is meant, by what is there.
    fn source(
        &self,
        inventory: &Inventory,
        state: &State,
        host: &HostName,
    ) -> Result<Source, Error> {
        let template = self.template.clone().filter(|(name, _)| {
            self.container.is_none()
                || inventory.templates.contains_key(name)
                || state.newest_generation(name, None).is_some()
        });
        let container = self.container.clone().filter(|name| {
            self.template.is_none() || state.containers.contains_key(&(host.clone(), name.clone()))
        });
        match (template, container) {
            (Some(_), Some(_)) => Err(Error::Ambiguous {
                name: self.name.clone(),
                candidates: vec![
                    format!("template:{}", self.name),
                    format!("container:{}", self.name),
                ],
            }),
            (Some((template, generation)), None) => Ok(Source::Template {
                template,
                generation,
            }),
            (None, Some(container)) => Ok(Source::Container { container }),
            (None, None) => Err(Error::Unknown {
                what: "template or container",
                name: self.name.clone(),
                place: Some(format!("to make it from on {host}")),
                nearest: None,
                hint: Some("`tallybook template list` and `container list` show all"),
            }),
        }
    }
}

impl Args {
    pub(super) async fn run(self, context: &Context, out: &mut Output) -> Result<Exit, Error> {
        let loaded = context.load_inventory()?;
        let spec = spec(&loaded.inventory, &self.name, self.on.as_ref())?;
        let host = spec.host.clone();
        let backing = match self.backing {
            Some(BackingArgument::Auto) => None,
            Some(BackingArgument::Dir) => Some(fact::Backing::Dir),
            Some(BackingArgument::Reflink) => Some(fact::Backing::Reflink),
            Some(BackingArgument::Overlay) => Some(fact::Backing::Overlay),
            None => wanted_backing(spec.backing),
        };
        let needs = Needs {
            inventory: &loaded.inventory,
            selection: only(&self.name),
        };
        act::operate(
            context,
            out,
            &self.options,
            &loaded,
            Some(needs),
            |state, _| {
                let place = Place {
                    host: &host,
                    container: &self.name,
                };
                let source = match (&self.from, &spec.source) {
                    (Some(from), _) => from.source(&loaded.inventory, state, &host)?,
                    (None, inventory::Source::Template(template)) => Source::Template {
                        template: template.clone(),
                        generation: None,
                    },
                    (None, inventory::Source::Debian(_) | inventory::Source::Busybox) => {
                        Source::Scratch
                    }
                };
                let known = Known {
                    inventory: &loaded.inventory,
                    state,
                };
                let mut claims = vec![place.subject()];
                if let Source::Container { container } = &source {
                    // Whoever stopped or destroyed it meanwhile would tear the copy.
                    claims.push(Subject::Container(host.clone(), container.clone()));
                }
                Ok(Wish {
                    steps: create(known, place, spec, &source, backing)?,
                    claims,
                    intent: Intent::ContainerCreate {
                        container: self.name.clone(),
                        host: host.clone(),
                        source,
                        backing,
                    },
                })
            },
        )
        .await
    }
}

/// A container of the inventory, on that host where one is given.
fn spec<'a>(
    inventory: &'a Inventory,
    name: &ContainerName,
    on: Option<&HostName>,
) -> Result<&'a inventory::Container, Error> {
    if let Some(host) = on
        && !inventory.hosts.contains_key(host)
    {
        return Err(plan::Error::HostUnknown(host.clone()).into());
    }
    let spec = inventory.containers.get(name);
    if let Some(spec) = spec.filter(|spec| on.is_none_or(|host| spec.host == *host)) {
        return Ok(spec);
    }
    match (on, spec) {
        (Some(host), None) => Err(plan::Error::ContainerUnknown {
            host: host.clone(),
            container: name.clone(),
        }
        .into()),
        (Some(host), Some(spec)) => Err(Error::Unknown {
            what: "container",
            name: name.to_string(),
            place: Some(format!("on {host}: the inventory has it on {}", spec.host)),
            nearest: None,
            hint: Some("leave `--on` out, or change its host in cloud.toml"),
        }),
        (None, _) => Err(Error::Unknown {
            what: "container",
            name: name.to_string(),
            place: Some("in the inventory".to_owned()),
            nearest: super::super::resolve::nearest(
                name.as_str(),
                inventory.containers.keys().map(ContainerName::as_str),
            ),
            hint: Some("add it under [containers] in cloud.toml"),
        }),
    }
}

/// This container alone.
pub(super) fn only(name: &ContainerName) -> Selection {
    Selection {
        hosts: BTreeSet::new(),
        containers: BTreeSet::from([name.clone()]),
    }
}

const fn wanted_backing(backing: inventory::Backing) -> Option<fact::Backing> {
    match backing {
        inventory::Backing::Auto => None,
        inventory::Backing::Dir => Some(fact::Backing::Dir),
        inventory::Backing::Overlay => Some(fact::Backing::Overlay),
        inventory::Backing::Reflink => Some(fact::Backing::Reflink),
    }
}
