//! Templates: made from a container, brought to hosts.

use std::net::IpAddr;

use tallybook_agent::steps::template_publish::TemplatePublish;
use tallybook_agent::steps::template_scan::TemplateScan;
use tallybook_agent::steps::template_scrub::TemplateScrub;
use tallybook_agent::steps::tree_receive::{Expect, TreeReceive};
use tallybook_agent::template::{Source, scrub};
use tallybook_events::ids::Generation;
use tallybook_events::name::{HostName, TemplateName};
use tallybook_events::step::{Peer, PlannedStep, SendSource};
use tallybook_events::subject::Subject;
use tallybook_replay::state::{State, TemplateGeneration};

use super::container::{Known, Place, stage};
use super::{Error, Plan, host};

/// What of a scrub and of the leak scan is left out, by name.
#[derive(Debug, Clone, Default)]
pub struct Exceptions {
    /// Scrub operations that are not carried out.
    pub keep: Vec<String>,
    /// Findings that do not stop publication: `rule` or `rule:/path`.
    pub allow: Vec<String>,
}

/// The generation that comes next.
pub fn next_generation(state: &State, template: &TemplateName) -> Generation {
    state
        .newest_generation(template, None)
        .map_or(Generation(1), |(newest, _)| Generation(newest.0 + 1))
}

/// What identifies a container, for the scrub and the leak scan.
pub(super) fn identity(known: Known<'_>, place: Place<'_>) -> Source {
    let mut source = Source {
        names: vec![place.container.to_string()],
        ..Source::default()
    };
    let key = (place.host.clone(), place.container.clone());
    if let Some(allocation) = known.state.allocations.get(&key) {
        source.addresses.push(IpAddr::V4(allocation.address));
        source.macs.push(allocation.mac);
    }
    let node = known.inventory.hosts.get(place.host);
    if let Some(domain) = node.and_then(|node| node.network.domain.as_ref()) {
        source.names.push(format!("{}.{domain}", place.container));
    }
    source
}

/// `template snapshot`.
///
/// # Errors
/// When the container is not there, or there is no scrub operation of a name to keep.
pub fn snapshot(
    known: Known<'_>,
    template: &TemplateName,
    generation: Generation,
    from: Place<'_>,
    exceptions: &Exceptions,
) -> Result<Vec<PlannedStep>, Error> {
    if let Err(unknown) = scrub::check_keep(&exceptions.keep) {
        return Err(Error::Value {
            what: "scrub operation",
            value: unknown.unknown.join(", "),
        });
    }
    let mut plan = Plan::default();
    let subject = Subject::Template(template.clone());
    let staged = stage(&mut plan, known, from, &subject)?;
    let source = identity(known, from);
    let scrub = TemplateScrub {
        staged,
        keep: exceptions.keep.clone(),
        source: source.clone(),
    };
    plan.then(from.host, &subject, &scrub)?;
    let scan = TemplateScan {
        staged,
        source,
        allow: exceptions.allow.clone(),
    };
    plan.then(from.host, &subject, &scan)?;
    let publish = TemplatePublish {
        template: template.clone(),
        generation,
        staged,
        expect: None,
    };
    plan.then(from.host, &subject, &publish)?;
    Ok(plan.finish())
}

/// A generation on a host: the one asked for, or the newest there.
///
/// # Errors
/// [`Error::TemplateMissing`], or [`Error::TemplateNowhere`] when there is none to bring there.
pub fn on_host<'a>(
    state: &'a State,
    template: &TemplateName,
    generation: Option<Generation>,
    host: &HostName,
) -> Result<(Generation, &'a TemplateGeneration), Error> {
    let found = match generation {
        Some(generation) => state
            .templates
            .get(&(template.clone(), generation))
            .filter(|known| known.hosts.contains(host))
            .map(|known| (generation, known)),
        None => state.newest_generation(template, Some(host)),
    };
    found.ok_or_else(|| {
        // Bringing it there only helps where somebody has it.
        let anywhere = match generation {
            Some(wanted) => {
                let known = state.templates.get(&(template.clone(), wanted));
                known.is_some_and(|known| !known.hosts.is_empty())
            }
            None => state.newest_generation(template, None).is_some(),
        };
        if !anywhere {
            return Error::TemplateNowhere {
                template: template.clone(),
                generation,
            };
        }
        Error::TemplateMissing {
            template: template.clone(),
            generation,
            host: host.clone(),
        }
    })
}

/// `template sync`: to every host that does not have it yet. No steps when all have it.
///
/// # Errors
/// When a host is not in the inventory or not installed, or the generation is not where it is to come from.
pub fn sync(
    known: Known<'_>,
    template: &TemplateName,
    generation: Generation,
    from: &HostName,
    to: &[HostName],
) -> Result<Vec<PlannedStep>, Error> {
    host::host(known.inventory, from)?;
    let (_, found) = on_host(known.state, template, Some(generation), from)?;
    let mut plan = Plan::default();
    let subject = Subject::Template(template.clone());
    for name in to {
        host::host(known.inventory, name)?;
        if found.hosts.contains(name) {
            continue;
        }
        let installed = known
            .state
            .hosts
            .get(name)
            .is_some_and(|host| host.installed);
        if !installed {
            return Err(Error::NotInstalled(name.clone()));
        }
        let receive = TreeReceive {
            expect: Expect::Id(found.manifest),
            what: format!("template {template} generation {generation}"),
        };
        let peer = Peer {
            host: from.clone(),
            source: SendSource::Template {
                template: template.clone(),
                generation,
            },
        };
        let staged = plan.receive(name, &subject, &receive, peer, None)?;
        let publish = TemplatePublish {
            template: template.clone(),
            generation,
            staged,
            expect: Some(found.manifest),
        };
        plan.then(name, &subject, &publish)?;
    }
    Ok(plan.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_scrub_operation_is_refused_before_anything_is_planned() {
        let inventory = crate::cloud::parse("cloud.toml", "[hosts.h]").unwrap();
        let known = Known {
            inventory: &inventory,
            state: &State::default(),
        };
        let from = Place {
            host: &"h".parse().unwrap(),
            container: &"c".parse().unwrap(),
        };
        let planned = |keep: &str| {
            let exceptions = Exceptions {
                keep: vec![keep.to_owned()],
                allow: Vec::new(),
            };
            snapshot(
                known,
                &"t".parse().unwrap(),
                Generation(1),
                from,
                &exceptions,
            )
        };
        let error = planned("nosuch").unwrap_err();
        assert_eq!(
            error.to_string(),
            "scrub operation \"nosuch\" can't be used"
        );
        // A known one is no mistake; what is wrong then is that the container is not there.
        let known_name = scrub::names()[0];
        assert!(matches!(
            planned(known_name).unwrap_err(),
            Error::ContainerMissing { .. }
        ));
    }
}
