//! `container.provision.2` and `container.provision_until.2`: as those without a number, with secrets besides.
//!
//! Their parameters name secrets and never hold a value. The command finds each in the variable of its name, in its
//! environment and nowhere else: no argument, no file.

use serde::{Deserialize, Serialize};
use tallybook_events::name::ContainerName;
use tallybook_events::step::{Reversal, Seen, StepFailure};

use crate::secret::SecretName;
use crate::step::{Context, Done, Step};
use crate::steps::container_provision::{
    Command, ContainerProvision, ContainerProvisionUntil, GOES_WITH_IT, Provisioned,
};

/// Runs a command with secrets in a container, once: nothing could tell afterwards whether it ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerProvision2 {
    /// The container.
    pub container: ContainerName,
    /// Which entry of the inventory's list, from 0.
    pub entry: u32,
    /// What is run.
    pub command: Command,
    /// What it is given.
    pub secrets: Vec<SecretName>,
    /// How long it may take, in seconds.
    pub timeout_s: u32,
}

/// Runs a command with secrets in a container unless what it creates is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerProvisionUntil2 {
    /// The container.
    pub container: ContainerName,
    /// Which entry of the inventory's list, from 0.
    pub entry: u32,
    /// What is run.
    pub command: Command,
    /// What it is given.
    pub secrets: Vec<SecretName>,
    /// The absolute path, in the container, of what it creates.
    pub creates: String,
    /// How long it may take, in seconds.
    pub timeout_s: u32,
}

impl ContainerProvision2 {
    fn plain(&self) -> ContainerProvision {
        ContainerProvision {
            container: self.container.clone(),
            entry: self.entry,
            command: self.command.clone(),
            timeout_s: self.timeout_s,
        }
    }
}

impl ContainerProvisionUntil2 {
    fn plain(&self) -> ContainerProvisionUntil {
        ContainerProvisionUntil {
            container: self.container.clone(),
            entry: self.entry,
            command: self.command.clone(),
            creates: self.creates.clone(),
            timeout_s: self.timeout_s,
        }
    }
}

/// What the step without secrets does, and with which.
fn with(summary: String, secrets: &[SecretName]) -> String {
    let names: Vec<&str> = secrets.iter().map(SecretName::as_str).collect();
    let what = if names.len() == 1 {
        "secret"
    } else {
        "secrets"
    };
    format!("{summary} (with {what} {})", names.join(", "))
}

fn kept() -> Reversal {
    Reversal::Keep {
        why: GOES_WITH_IT.to_owned(),
    }
}

impl Step for ContainerProvision2 {
    const KIND: &'static str = "container.provision.2";
    const ONCE: bool = true;
    type Output = Provisioned;

    fn summary(&self) -> String {
        with(self.plain().summary(), &self.secrets)
    }

    fn reversal(&self) -> Reversal {
        kept()
    }

    fn secrets(&self) -> Vec<SecretName> {
        self.secrets.clone()
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        self.plain().probe(context)
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Provisioned>, StepFailure> {
        self.plain().run_with(context, &self.secrets)
    }

    fn adopt(&self, context: &mut Context<'_>) -> Result<Done<Provisioned>, StepFailure> {
        self.plain().adopt(context)
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        output: Option<Provisioned>,
    ) -> Result<Done<()>, StepFailure> {
        self.plain().undo(context, output)
    }
}

impl Step for ContainerProvisionUntil2 {
    const KIND: &'static str = "container.provision_until.2";
    type Output = Provisioned;

    fn summary(&self) -> String {
        with(self.plain().summary(), &self.secrets)
    }

    fn reversal(&self) -> Reversal {
        kept()
    }

    fn secrets(&self) -> Vec<SecretName> {
        self.secrets.clone()
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        self.plain().probe(context)
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Provisioned>, StepFailure> {
        self.plain().run_with(context, &self.secrets)
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        output: Option<Provisioned>,
    ) -> Result<Done<()>, StepFailure> {
        self.plain().undo(context, output)
    }
}
