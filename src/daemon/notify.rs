//! What a service manager is told, over the datagram socket that it names in `NOTIFY_SOCKET`: ready, how it stands, that it
//! lives, that it ends. Without such a socket nothing is told.
//!
//! A manager that can't be told changes nothing of what the daemon does.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Tells the service manager.
#[derive(Debug)]
pub struct Manager {
    line: Option<UnixDatagram>,
    watchdog: Option<Duration>,
    /// What it was told last of how things stand.
    status: Mutex<String>,
}

impl Manager {
    /// The one that the environment names.
    pub fn of_environment(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let name = variable("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let line = name.and_then(|name| match connect(&name) {
            Ok(line) => Some(line),
            Err(error) => {
                tracing::warn!("the service manager can't be told anything: {error}");
                None
            }
        });
        let number = |name: &str| variable(name)?.to_str()?.parse::<u64>().ok();
        let is_meant =
            number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| *usec > 0 && is_meant);
        Manager {
            line,
            watchdog: watchdog.map(Duration::from_micros),
            status: Mutex::default(),
        }
    }

    /// After how long without a sign of life it ends this process, where it does.
    pub const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Everything can be asked from here on.
    pub fn ready(&self) {
        self.tell("READY=1\n");
    }

    /// How it stands, in a line; once, as long as it stands so.
    pub fn status(&self, what: &str) {
        let mut told = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        if *told != what {
            what.clone_into(&mut told);
            self.tell(&format!("STATUS={}\n", what.replace('\n', " ")));
        }
    }

    /// A sign of life.
    pub fn alive(&self) {
        if self.watchdog.is_some() {
            self.tell("WATCHDOG=1\n");
        }
    }

    /// It ends.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\n");
    }

    fn tell(&self, what: &str) {
        let Some(line) = &self.line else { return };
        if let Err(error) = line.send(what.as_bytes()) {
            tracing::debug!("the service manager was not told {what:?}: {error}");
        }
    }
}

fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let line = UnixDatagram::unbound()?;
    // Nobody is waited for.
    line.set_nonblocking(true)?;
    match name.as_bytes() {
        [b'@', abstract_name @ ..] => {
            line.connect_addr(&SocketAddr::from_abstract_name(abstract_name)?)?;
        }
        [b'/', ..] => line.connect(name)?,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(socket: &OsStr, more: &[(&str, &str)]) -> Manager {
        Manager::of_environment(|name| {
            let mut more = more.iter();
            match name == "NOTIFY_SOCKET" {
                true => Some(socket.to_owned()),
                false => more.find(|(of, _)| *of == name).map(|(_, it)| it.into()),
            }
        })
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 256];
        let len = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    }

    #[test]
    fn a_manager_hears_by_path_and_by_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let named = format!("tallybook-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&named).unwrap();
        let at_path = UnixDatagram::bind(&path).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        let abstract_name = OsString::from(format!("@{named}"));
        for (socket, name) in [(&at_path, path.as_os_str()), (&by_name, &abstract_name)] {
            let manager = manager(name, &[("WATCHDOG_USEC", "5000000")]);
            assert_eq!(manager.watchdog(), Some(Duration::from_secs(5)));
            manager.ready();
            assert_eq!(heard(socket), "READY=1\n");
            manager.status("two\nlines");
            manager.status("two\nlines");
            assert_eq!(heard(socket), "STATUS=two lines\n");
            manager.alive();
            assert_eq!(heard(socket), "WATCHDOG=1\n");
        }
    }

    #[test]
    fn a_watchdog_of_another_process_is_not_ours() {
        let socket = OsString::from("/nowhere/at/all");
        let other = (std::process::id() + 1).to_string();
        let told = manager(&socket, &[("WATCHDOG_USEC", "1"), ("WATCHDOG_PID", &other)]);
        assert_eq!(told.watchdog(), None);
        told.ready();
    }
}
