//! The peer: `ansible-playbook` with twenty tasks that make sure of a directory, pipelining, a line a host that stays, and as many forks
//! as there are hosts. Facts are not gathered: ours gathers none.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::hosts::Hosts;
use super::{Did, STEPS, memory};
use crate::Failure;

/// Runs it on the first so many hosts, with no line left from before.
///
/// # Errors
/// When it fails.
pub(super) fn run(hosts: &Hosts, count: usize, program: &Path) -> Result<Did, Failure> {
    let directory = hosts.directory.join("ansible");
    fs::create_dir_all(&directory)?;
    let python = program.with_file_name("python3");
    let at = hosts.directory.display();
    // A path of a socket is short.
    let lines = tempfile()?;
    let mut inventory = "[all]\n".to_owned();
    for (number, port) in (1..=count).zip(&hosts.ports) {
        writeln!(
            inventory,
            "cn{number} ansible_host=127.0.0.1 ansible_port={port}"
        )?;
    }
    writeln!(
        inventory,
        "\n[all:vars]\nansible_user=root\nansible_ssh_private_key_file={at}/key\nansible_python_interpreter={}",
        python.display()
    )?;
    fs::write(directory.join("hosts"), inventory)?;
    let mut playbook = "- hosts: all\n  gather_facts: false\n  tasks:\n".to_owned();
    for task in 0..STEPS {
        writeln!(
            playbook,
            "    - name: step {task}\n      ansible.builtin.file:\n        path: /var/lib/tallybook\n        state: directory\n        mode: \"0700\""
        )?;
    }
    fs::write(directory.join("play.yml"), playbook)?;
    fs::write(
        directory.join("ansible.cfg"),
        format!(
            "[defaults]\nforks = {count}\nhost_key_checking = true\n[ssh_connection]\npipelining = true\n\
             control_path_dir = {lines}\nssh_args = -F {at}/ssh_config -o ControlMaster=auto -o ControlPersist=60s \
             -o UserKnownHostsFile={at}/known_hosts -o IdentityAgent=none\n",
        ),
    )?;
    let mark = format!("{}-{count}", std::process::id());
    let began = Instant::now();
    let child = Command::new(program)
        .args(["-i", "hosts", "play.yml"])
        .current_dir(&directory)
        .env("ANSIBLE_CONFIG", directory.join("ansible.cfg"))
        .env("HOME", &directory)
        .env("LC_ALL", "C.UTF-8")
        .env(memory::MARK, &mark)
        .env_remove("SSH_AUTH_SOCK")
        .stdin(Stdio::null())
        .stdout(fs::File::create(directory.join("said"))?)
        .stderr(fs::File::create(directory.join("complained"))?)
        .spawn()?;
    let (is_good, mebibytes) = memory::wait(child, &mark)?;
    let seconds = began.elapsed().as_secs_f64();
    for line in fs::read_dir(&lines)?.flatten() {
        let closed = Command::new("ssh")
            .args(["-F", "none", "-O", "exit", "-o"])
            .arg(format!("ControlPath={}", line.path().display()))
            .arg("cn")
            .stderr(Stdio::null())
            .status()?;
        if !closed.success() {
            eprintln!("a line of Ansible's was gone already");
        }
    }
    fs::remove_dir_all(&lines)?;
    match is_good {
        true => Ok(Did { seconds, mebibytes }),
        false => Err(format!("ansible-playbook failed: see {}", directory.display()).into()),
    }
}

fn tempfile() -> Result<String, Failure> {
    let path = std::env::temp_dir().join(format!("tallybook-bench-{}", std::process::id()));
    fs::create_dir_all(&path)?;
    Ok(path.display().to_string())
}
