//! Intents: what an operator asked for, in the imperative.

use serde::{Deserialize, Serialize};

use crate::argv;
use crate::fact::Backing;
use crate::ids::{Generation, OperationId, Seq};
use crate::name::{ContainerName, HostName, TemplateName};

/// What a container is to be made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A distribution, as the inventory says.
    Scratch,
    /// A template, its newest generation on the host unless one is named.
    Template {
        /// The template.
        template: TemplateName,
        /// The generation.
        generation: Option<Generation>,
    },
    /// A container of the same host.
    Container {
        /// Its name.
        container: ContainerName,
    },
}

/// What an operator asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intent {
    /// Put what the tool needs on hosts.
    HostInstall {
        /// The hosts.
        hosts: Vec<HostName>,
    },
    /// Make hosts able to run containers.
    HostPrepare {
        /// The hosts.
        hosts: Vec<HostName>,
    },
    /// Have the servers answer for the cloud's zones.
    DnsApply {
        /// The hosts that are servers.
        hosts: Vec<HostName>,
    },
    /// Make a container.
    ContainerCreate {
        /// Its name.
        container: ContainerName,
        /// Its host.
        host: HostName,
        /// What from.
        source: Source,
        /// How it is to be stored; `None` leaves it to what the file system offers.
        backing: Option<Backing>,
    },
    /// Start a container.
    ContainerStart {
        /// Its name.
        container: ContainerName,
        /// Its host.
        host: HostName,
    },
    /// Stop a container.
    ContainerStop {
        /// Its name.
        container: ContainerName,
        /// Its host.
        host: HostName,
    },
    /// Stop and start a container.
    ContainerRestart {
        /// Its name.
        container: ContainerName,
        /// Its host.
        host: HostName,
    },
    /// Remove a container and all it was given.
    ContainerDestroy {
        /// Its name.
        container: ContainerName,
        /// Its host.
        host: HostName,
    },
    /// Run one command in a container.
    ContainerExec {
        /// Its name.
        container: ContainerName,
        /// Its host.
        host: HostName,
        /// The argument vector.
        argv: Vec<String>,
    },
    /// Work in a container at a terminal.
    ContainerShell {
        /// Its name.
        container: ContainerName,
        /// Its host.
        host: HostName,
    },
    /// Copy a container to another host, or beside itself.
    ContainerCopy {
        /// The container to copy.
        container: ContainerName,
        /// Its host.
        from: HostName,
        /// The host to copy it to.
        to: HostName,
        /// The copy's name.
        copy: ContainerName,
    },
    /// Make a generation of a template from a container.
    TemplateSnapshot {
        /// The template.
        template: TemplateName,
        /// The container.
        container: ContainerName,
        /// Its host.
        host: HostName,
        /// The generation to make.
        generation: Generation,
    },
    /// Bring a generation of a template to hosts.
    TemplateSync {
        /// The template.
        template: TemplateName,
        /// The generation.
        generation: Generation,
        /// The host that has it.
        from: HostName,
        /// The hosts that are to have it.
        to: Vec<HostName>,
    },
    /// Remove a generation of a template from hosts.
    TemplateRemove {
        /// The template.
        template: TemplateName,
        /// The generation.
        generation: Generation,
        /// The hosts.
        hosts: Vec<HostName>,
    },
    /// Take back an operation.
    Rollback {
        /// That operation.
        operation: OperationId,
    },
    /// Take back what was begun since a point of the log.
    RollbackTo {
        /// The last event that stays as it is.
        to: Seq,
        /// What is taken back, the newest first.
        operations: Vec<OperationId>,
    },
}

impl Intent {
    /// The operations that one with this intent takes back; none for any that is no rollback.
    pub fn takes_back(&self) -> &[OperationId] {
        match self {
            Intent::Rollback { operation } => std::slice::from_ref(operation),
            Intent::RollbackTo { operations, .. } => operations,
            Intent::HostInstall { .. }
            | Intent::HostPrepare { .. }
            | Intent::DnsApply { .. }
            | Intent::ContainerCreate { .. }
            | Intent::ContainerStart { .. }
            | Intent::ContainerStop { .. }
            | Intent::ContainerRestart { .. }
            | Intent::ContainerDestroy { .. }
            | Intent::ContainerExec { .. }
            | Intent::ContainerShell { .. }
            | Intent::ContainerCopy { .. }
            | Intent::TemplateSnapshot { .. }
            | Intent::TemplateSync { .. }
            | Intent::TemplateRemove { .. } => &[],
        }
    }

    /// Whether it takes others back.
    pub const fn is_rollback(&self) -> bool {
        matches!(self, Intent::Rollback { .. } | Intent::RollbackTo { .. })
    }

    /// Whether somebody works in a container by it: nothing of that can be resumed or taken back.
    pub const fn is_session(&self) -> bool {
        matches!(
            self,
            Intent::ContainerExec { .. } | Intent::ContainerShell { .. }
        )
    }

    /// The command an operator would type for it, for tables.
    pub fn summary(&self) -> String {
        let list = |hosts: &[HostName]| {
            let names: Vec<&str> = hosts.iter().map(HostName::as_str).collect();
            names.join(" ")
        };
        match self {
            Intent::HostInstall { hosts } => format!("host install {}", list(hosts)),
            Intent::HostPrepare { hosts } => format!("host prepare {}", list(hosts)),
            Intent::DnsApply { hosts } => format!("dns apply on {}", list(hosts)),
            Intent::ContainerCreate {
                container,
                host,
                source,
                backing: _,
            } => match source {
                Source::Scratch => format!("container create {container} --on {host}"),
                Source::Template { template, .. } => {
                    format!("container create {container} --on {host} --from {template}")
                }
                Source::Container { container: from } => {
                    format!("container create {container} --on {host} --from {from}")
                }
            },
            Intent::ContainerStart { container, host } => {
                format!("container start {host}/{container}")
            }
            Intent::ContainerStop { container, host } => {
                format!("container stop {host}/{container}")
            }
            Intent::ContainerRestart { container, host } => {
                format!("container restart {host}/{container}")
            }
            Intent::ContainerDestroy { container, host } => {
                format!("container destroy {host}/{container}")
            }
            Intent::ContainerExec {
                container,
                host,
                argv,
            } => format!("container exec {host}/{container} -- {}", argv::text(argv)),
            Intent::ContainerShell { container, host } => {
                format!("container shell {host}/{container}")
            }
            Intent::ContainerCopy {
                container,
                from,
                to,
                copy,
            } => format!("container copy {from}/{container} --to {to} --as {copy}"),
            Intent::TemplateSnapshot {
                template,
                container,
                host,
                generation,
            } => format!(
                "template snapshot {template} --from {host}/{container} (generation {generation})"
            ),
            Intent::TemplateSync {
                template,
                generation,
                from,
                to,
            } => format!(
                "template sync {template} --from {from} --to {} (generation {generation})",
                list(to)
            ),
            Intent::TemplateRemove {
                template,
                generation,
                hosts,
            } => format!(
                "template rm {template} (generation {generation}) on {}",
                list(hosts)
            ),
            Intent::Rollback { operation } => format!("op rollback {}", operation.short()),
            Intent::RollbackTo { to, .. } => format!("rollback --to {to}"),
        }
    }
}
