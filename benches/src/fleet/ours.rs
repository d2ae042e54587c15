//! Our side: a process that opens a store, makes an operation durable and carries it out, with the calls of an acting command.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use tallybook::engine::reach::{AgentProgram, Fleet};
use tallybook::engine::{self, Engine, Limits, Outcome, Proposal};
use tallybook::host::{Settings, Target};
use tallybook::log::{Log, Open};
use tallybook_events::ids::{Seq, StepIndex};
use tallybook_events::intent::Intent;
use tallybook_events::name::HostName;
use tallybook_events::pace::Pace;
use tallybook_events::step::PlannedStep;
use tallybook_events::subject::Subject;

use super::hosts::Hosts;
use super::{Did, STEPS};
use crate::Failure;
use crate::world;

/// Runs a process of ours on the first so many hosts.
///
/// # Errors
/// When it fails.
pub(super) fn run(hosts: &Hosts, count: usize) -> Result<Did, Failure> {
    let ports: Vec<String> = hosts.ports.iter().take(count).map(u16::to_string).collect();
    let began = Instant::now();
    let output = Command::new(hosts.program())
        .arg("fleet-ours")
        .arg(&hosts.directory)
        .args(ports)
        .env_remove("SSH_AUTH_SOCK")
        .stdin(Stdio::null())
        .output()?;
    let seconds = began.elapsed().as_secs_f64();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("our side failed: {said}").into());
    }
    let kibibytes: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
    Ok(Did {
        seconds,
        mebibytes: kibibytes / 1024.0,
    })
}

/// Is that process; prints the most memory that it had, in KiB.
///
/// # Errors
/// When the operation does not succeed.
pub(crate) fn carry_out(directory: &Path, ports: &[u16]) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let name = |number: usize| HostName::new(&format!("cn{number}"));
    let mut targets = Vec::new();
    let mut steps: Vec<PlannedStep> = Vec::new();
    let mut claims = Vec::new();
    for (number, port) in (1..).zip(ports) {
        let host = name(number)?;
        let subject = Subject::Host(host.clone());
        claims.push(subject.clone());
        for step in 0..STEPS {
            let index = u32::try_from(steps.len())?;
            let mut planned = world::planned(&host, &subject, "host.directories", index);
            if step == 0 {
                planned.after = Vec::<StepIndex>::new();
            }
            steps.push(planned);
        }
        targets.push(Target {
            name: host,
            address: "127.0.0.1".to_owned(),
            port: Some(*port),
            user: Some("root".to_owned()),
            identity_files: vec![directory.join("key")],
            jumps: Vec::new(),
            become_root: false,
            local: false,
        });
    }
    let settings = Settings {
        ssh_config: Some(directory.join("ssh_config")),
        known_hosts: vec![directory.join("known_hosts")],
        ..Settings::with_environment(|name| std::env::var_os(name))
    };
    let hosts: Vec<HostName> = targets.iter().map(|target| target.name.clone()).collect();
    runtime.block_on(async {
        let store = directory.join("store");
        let log = Log::open(&store, Open::Create, |_| {}).await?;
        let fleet = Fleet::new(targets, settings, AgentProgram::beside_this_program()?);
        let (_keep, stop) = tokio::sync::watch::channel(false);
        let watch = Arc::new(|_: &engine::watch::Notice| {});
        let engine = Engine::new(log.clone(), Arc::new(fleet), watch, stop, Limits::default());
        let id = engine::new_operation();
        engine
            .begin(Proposal {
                id,
                intent: Intent::HostInstall { hosts },
                inventory: Seq::NONE,
                claims,
                steps,
                planned_at: Some(log.head().await?.seq),
                alongside: None,
                instead_of: Vec::new(),
                pace: Pace::default(),
            })
            .await?;
        match engine.run(id).await? {
            Outcome::Succeeded => Ok::<_, Failure>(()),
            other => Err(format!("{other:?}").into()),
        }
    })?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|it| it.split_whitespace().next());
    println!("{}", peak.ok_or("no VmHWM")?);
    Ok(())
}
