//! Steps of every kind that plans use, played: each notes that it was there, and says of the world what the real one
//! would. A file `fail-KIND` beside the notes makes one fail, as the class that the file names; `wait-KIND`
//! makes one wait until it is gone. A script of a provisioning with secrets is run, by a shell of this machine.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tallybook_agent::layout::Layout;
use tallybook_agent::secret::SecretName;
use tallybook_agent::step::{Context, Done, Link, Program, Step, StepKind, fail};
use tallybook_agent::steps as real;
use tallybook_events::codec;
use tallybook_events::fact::{Backing, Fact, Origin};
use tallybook_events::ids::Hash;
use tallybook_events::name::{ContainerName, HostName};
use tallybook_events::step::{FailureClass, Reversal, Seen, SendSource, StepFailure};

/// A step that is played.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct Played<S>(S);

/// What was noted on a host, line by line.
pub(crate) fn notes(state: &Path) -> Vec<String> {
    let text = fs::read_to_string(state.join("notes")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn note(layout: &Layout, text: &str) {
    fs::create_dir_all(&layout.state).unwrap();
    let file = layout.state.join("notes");
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .unwrap();
    writeln!(file, "{text}").unwrap();
}

fn fault(layout: &Layout, name: &str) -> Result<(), StepFailure> {
    let Ok(class) = fs::read_to_string(layout.state.join(format!("fail-{name}"))) else {
        return Ok(());
    };
    let class = match class.as_str() {
        "disk_full" => FailureClass::DiskFull,
        "exists" => FailureClass::Exists,
        _ => FailureClass::Host,
    };
    Err(fail(class, format!("{name} was made to fail")))
}

/// What others have where a step of a kind acts: the file `foreign-KIND` beside the notes.
fn foreign<S: Step>(layout: &Layout) -> Option<(PathBuf, String)> {
    let path = layout.state.join(format!("foreign-{}", S::KIND));
    fs::read_to_string(&path).ok().map(|text| (path, text))
}

fn done<T>(output: T, facts: Vec<Fact>) -> Done<T> {
    Done {
        changed: true,
        output,
        facts,
    }
}

#[derive(Deserialize)]
struct Of {
    container: ContainerName,
}

impl<S: Step> Played<S> {
    fn container(&self) -> ContainerName {
        let of: Of = codec::decode(&codec::encode(&self.0).unwrap()).unwrap();
        of.container
    }

    fn as_real<R: Step>(&self) -> R {
        codec::decode(&codec::encode(&self.0).unwrap()).unwrap()
    }

    fn provision(&self, context: &mut Context<'_>) -> Result<(), StepFailure> {
        let step: real::container_provision_2::ContainerProvision2 = self.as_real();
        let real::container_provision::Command::Script(script) = step.command else {
            return Ok(());
        };
        let program = Program::new(["sh", "-s"]).stdin(script);
        let secrets = step.secrets.iter();
        let program = secrets.fold(program, |program, name| program.secret(name));
        context.run(&program).map(drop)
    }

    fn facts(&self, host: &HostName) -> Vec<Fact> {
        let host = host.clone();
        match S::KIND {
            "host.directories" => vec![Fact::HostInstalled { host }],
            "host.nftables" => vec![Fact::HostPrepared {
                host,
                bridge: "tbbr0".to_owned(),
                gateway: "10.5.0.1/24".to_owned(),
            }],
            "container.publish" => vec![
                Fact::ContainerCreated {
                    host: host.clone(),
                    container: self.container(),
                    origin: Origin::Scratch {
                        distribution: "debian".to_owned(),
                        release: "bookworm".to_owned(),
                    },
                    backing: Backing::Dir,
                },
                Fact::ContainerIdentified {
                    host,
                    container: self.container(),
                    machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
                    host_keys: Vec::new(),
                },
            ],
            "container.start" => vec![Fact::ContainerStarted {
                host,
                container: self.container(),
            }],
            "container.stop" => vec![Fact::ContainerStopped {
                host,
                container: self.container(),
            }],
            "trash.purge" => vec![Fact::ContainerDestroyed {
                host,
                container: self.container(),
            }],
            "template.publish" => {
                let step: real::template_publish::TemplatePublish = self.as_real();
                vec![Fact::TemplatePresent {
                    host,
                    template: step.template,
                    generation: step.generation,
                    manifest: Hash([7; 32]),
                    entries: 1200,
                    size_bytes: 300 << 20,
                }]
            }
            _ => Vec::new(),
        }
    }

    fn undone(&self, host: &HostName) -> Vec<Fact> {
        let host = host.clone();
        match S::KIND {
            "host.directories" => vec![Fact::HostUninstalled { host }],
            "host.nftables" => vec![Fact::HostUnprepared { host }],
            "container.publish" => vec![Fact::ContainerDestroyed {
                host,
                container: self.container(),
            }],
            "container.start" => vec![Fact::ContainerStopped {
                host,
                container: self.container(),
            }],
            "container.stop" => vec![Fact::ContainerStarted {
                host,
                container: self.container(),
            }],
            "template.publish" => {
                let step: real::template_publish::TemplatePublish = self.as_real();
                vec![Fact::TemplateAbsent {
                    host,
                    template: step.template,
                    generation: step.generation,
                }]
            }
            _ => Vec::new(),
        }
    }
}

impl<S: Step> Step for Played<S> {
    const KIND: &'static str = S::KIND;
    const ONCE: bool = S::ONCE;
    type Output = String;

    fn summary(&self) -> String {
        self.0.summary()
    }

    fn reversal(&self) -> Reversal {
        self.0.reversal()
    }

    fn secrets(&self) -> Vec<SecretName> {
        self.0.secrets()
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        if let Some((path, _)) = foreign::<S>(context.layout) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            return Ok(Seen::Conflict {
                what: format!("{name} is of others"),
            });
        }
        if notes(&context.layout.state).contains(&self.summary()) {
            return done(String::new(), self.facts(context.host)).seen();
        }
        Ok(Seen::Absent)
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<String>, StepFailure> {
        fault(context.layout, S::KIND)?;
        if foreign::<S>(context.layout).is_some() {
            let message = format!("something of others is where {} acts", S::KIND);
            return Err(fail(FailureClass::Exists, message));
        }
        let wait = context.layout.state.join(format!("wait-{}", S::KIND));
        if wait.exists() {
            note(context.layout, &format!("waits: {}", self.summary()));
        }
        while wait.exists() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        note(context.layout, &self.summary());
        if S::KIND == "container.provision.2" {
            self.provision(context)?;
        }
        Ok(done(String::new(), self.facts(context.host)))
    }

    fn in_the_way(&self, context: &mut Context<'_>) -> Result<Vec<PathBuf>, StepFailure> {
        let found = foreign::<S>(context.layout);
        Ok(found.map(|(path, _)| path).into_iter().collect())
    }

    fn adopt(&self, context: &mut Context<'_>) -> Result<Done<String>, StepFailure> {
        match foreign::<S>(context.layout) {
            Some((_, text)) if text == "wanted" => {
                Ok(done(String::new(), self.facts(context.host)))
            }
            Some(_) | None => Err(fail(FailureClass::Exists, "it is not what is wanted")),
        }
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        _output: Option<String>,
    ) -> Result<Done<()>, StepFailure> {
        fault(context.layout, &format!("undo-{}", S::KIND))?;
        note(context.layout, &format!("undo: {}", self.summary()));
        Ok(done((), self.undone(context.host)))
    }
}

macro_rules! table {
    ($($module:ident::$step:ident,)*) => {
        pub(crate) static TABLE: &[StepKind] =
            &[$(StepKind::of::<Played<real::$module::$step>>(),)*];
    };
}

table! {
    base_bootstrap::BaseBootstrap,
    container_await_address::ContainerAwaitAddress,
    container_build::ContainerBuild,
    container_configure::ContainerConfigure,
    container_provision::ContainerProvision,
    container_provision::ContainerProvisionUntil,
    container_provision_2::ContainerProvision2,
    container_provision_2::ContainerProvisionUntil2,
    container_publish::ContainerPublish,
    container_retire::ContainerCheckRetire,
    container_retire::ContainerRetire,
    container_start::ContainerStart,
    container_stop::ContainerStop,
    dhcp_release::DhcpRelease,
    dhcp_reserve::DhcpReserve,
    dns_follow::DnsFollow,
    dns_serve::DnsServe,
    forward_close::ForwardClose,
    forward_open::ForwardOpen,
    host_bridge::HostBridge,
    host_directories::HostDirectories,
    host_dnsmasq::HostDnsmasq,
    host_forwarding::HostForwarding,
    host_nftables::HostNftables,
    host_observe::HostObserve,
    host_packages::HostPackages,
    template_publish::TemplatePublish,
    template_scan::TemplateScan,
    template_scrub::TemplateScrub,
    trash_purge::TrashPurge,
    tree_discard::TreeDiscard,
    tree_receive::TreeReceive,
    tree_seal::TreeSeal,
    tree_stage::TreeStage,
}

/// The sending end of a transfer, which has nothing to send: the receiving one is played.
pub(crate) fn send(_: &SendSource, _: &Layout, _: &mut dyn Link) -> Result<(), StepFailure> {
    Ok(())
}
