//! Hosts of a bench: an sshd process each, on a port of the loopback, with directories of the tool's that are its own.
//!
//! A host is this machine in a mount namespace in which `/var/lib/tallybook` and `/etc/tallybook` are the host's. It changes nothing
//! else on the machine; that the two directories exist is all that it needs.

use std::fmt::Write as _;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Failure;

/// What a session runs in. Each side's commands go through it alike.
const ENTER: &str = r#"#!/bin/sh
# enter DIRECTORY: the command of an SSH session, on the host whose directories are there.
exec unshare --mount -- /bin/sh -c 'mount --bind "$1/state" /var/lib/tallybook && mount --bind "$1/etc" /etc/tallybook &&
    exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"' enter "$1"
"#;
/// Where the tool's own directories are on a host.
const OWN: [&str; 2] = ["/var/lib/tallybook", "/etc/tallybook"];

/// Hosts that run until this is dropped.
pub(crate) struct Hosts {
    /// Everything about them.
    pub(crate) directory: PathBuf,
    /// The port of each.
    pub(crate) ports: Vec<u16>,
    /// Ends with them.
    processes: Vec<Child>,
    /// Directories that are there for them alone.
    made: Vec<&'static str>,
}

impl Hosts {
    /// So many hosts.
    ///
    /// # Errors
    /// When one does not listen.
    pub(crate) fn start(directory: &Path, count: usize, agent: &Path) -> Result<Self, Failure> {
        if !rustix::process::geteuid().is_root() {
            return Err("hosts of a bench are mount namespaces, which only root can make".into());
        }
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        fs::create_dir_all(directory.join("bin"))?;
        fs::create_dir_all("/run/sshd")?;
        let mut hosts = Hosts {
            directory: directory.to_owned(),
            ports: Vec::new(),
            processes: Vec::new(),
            made: Vec::new(),
        };
        for own in OWN {
            if !Path::new(own).exists() {
                fs::create_dir_all(own)?;
                hosts.made.push(own);
            }
        }
        // The agent is looked for beside the program.
        let program = hosts.program();
        fs::copy(std::env::current_exe()?, program)?;
        fs::copy(agent, directory.join("bin/tallybook-agent"))?;
        let enter = directory.join("enter");
        fs::write(&enter, ENTER)?;
        fs::set_permissions(&enter, fs::Permissions::from_mode(0o755))?;
        for key in ["host_key", "key"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f"])
                .arg(directory.join(key))
                .status()?;
            if !made.success() {
                return Err("ssh-keygen failed".into());
            }
        }
        let public = fs::read_to_string(directory.join("host_key.pub"))?;
        let mut known = String::new();
        // All are had at once, so that none comes twice; free then, and hardly anybody asks for ports here.
        let free: Result<Vec<_>, _> = (0..count)
            .map(|_| TcpListener::bind("127.0.0.1:0"))
            .collect();
        let ports: Result<Vec<_>, _> = free?.iter().map(TcpListener::local_addr).collect();
        for (number, port) in (1..).zip(ports?) {
            let port = hosts.start_one(number, port.port())?;
            writeln!(known, "[127.0.0.1]:{port} {}", public.trim_end())?;
            hosts.ports.push(port);
        }
        fs::write(directory.join("known_hosts"), known)?;
        fs::write(directory.join("ssh_config"), "")?;
        hosts.wait()?;
        Ok(hosts)
    }

    /// This program, with the agent beside it.
    pub(crate) fn program(&self) -> PathBuf {
        self.directory.join("bin/tallybook-bench")
    }

    fn start_one(&mut self, number: usize, port: u16) -> Result<u16, Failure> {
        let own = self.directory.join(format!("host{number}"));
        // A home of its own: what this machine's root has in it would be read by every login shell of both sides.
        for name in ["state", "etc", "home"] {
            fs::create_dir_all(own.join(name))?;
        }
        let at = self.directory.display();
        let config = own.join("sshd_config");
        fs::write(
            &config,
            format!(
                "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host_key\nAuthorizedKeysFile {at}/key.pub\n\
                 PidFile none\nStrictModes no\nUsePAM no\nUseDNS no\nPermitRootLogin prohibit-password\n\
                 PasswordAuthentication no\nMaxStartups 200\nLogLevel ERROR\nSetEnv HOME={own}/home\nForceCommand {at}/enter {own}\n",
                own = own.display()
            ),
        )?;
        let process = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(&config)
            .stdin(Stdio::null())
            .stderr(fs::File::create(own.join("sshd.log"))?)
            .spawn()?;
        self.processes.push(process);
        Ok(port)
    }

    fn wait(&self) -> Result<(), Failure> {
        let until = Instant::now() + Duration::from_secs(30);
        for port in &self.ports {
            while TcpStream::connect(("127.0.0.1", *port)).is_err() {
                if Instant::now() > until {
                    return Err(format!("the sshd of port {port} does not listen").into());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _gone = process.kill();
            let _gone = process.wait();
        }
        for own in &self.made {
            // Only where nobody uses it by now.
            let _used = fs::remove_dir(own);
        }
    }
}
