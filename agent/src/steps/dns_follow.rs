//! `dns.follow`: a host's server has zones as another host's server has them.
//!
//! It changes nothing but when the server asks: BIND's own transfer brings the zones.

use serde::{Deserialize, Serialize};
use tallybook_events::name::HostName;
use tallybook_events::step::{Reversal, Seen, StepFailure};

use crate::dns::DomainName;
use crate::dns::answers::{self, Serials};
use crate::step::{Context, Done, OutputOf, Step};
use crate::steps::dns_serve::Served;

/// Waits until the host's server has zones from elsewhere.
#[derive(Debug, Serialize, Deserialize)]
pub struct DnsFollow {
    /// The host whose server has them first.
    pub primary: HostName,
    /// What that one answers with.
    pub served: OutputOf<Served>,
    /// Those of its zones that this host has too.
    pub zones: Vec<DomainName>,
}

impl DnsFollow {
    fn wanted(&self, context: &Context<'_>) -> Result<Serials, StepFailure> {
        let served = context.output(&self.served)?.serials.into_iter();
        let wanted = served.filter(|(zone, _)| self.zones.contains(zone));
        Ok(wanted.collect())
    }
}

const fn done() -> Done<()> {
    Done {
        changed: false,
        output: (),
        facts: Vec::new(),
    }
}

impl Step for DnsFollow {
    const KIND: &'static str = "dns.follow";
    type Output = ();

    fn summary(&self) -> String {
        let zones = self.zones.iter().map(DomainName::as_str);
        let zones: Vec<&str> = zones.collect();
        match zones.as_slice() {
            [zone] => format!("have the DNS zone {zone} from {}", self.primary),
            zones => format!("have {} DNS zones from {}", zones.len(), self.primary),
        }
    }

    fn reversal(&self) -> Reversal {
        Reversal::Keep {
            why: "the server follows its primary by itself".to_owned(),
        }
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let wanted = self.wanted(context)?;
        match answers::lags(context, &wanted)? {
            None => done().seen(),
            Some(lag) => Ok(Seen::Partial {
                what: lag.to_string(),
            }),
        }
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<()>, StepFailure> {
        let wanted = self.wanted(context)?;
        answers::refresh(context, &wanted)?;
        answers::await_serials(context, &wanted, Some(self.primary.as_str()))?;
        Ok(done())
    }

    fn undo(&self, _: &mut Context<'_>, _: Option<()>) -> Result<Done<()>, StepFailure> {
        Ok(done())
    }
}
