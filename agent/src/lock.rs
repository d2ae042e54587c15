//! Locks between the agents of one host: one a running operation, one a resource that steps share.
//!
//! A lock is `flock` on a file below [`Layout::locks`]; the kernel drops it with its process, so none is ever
//! stale and none is ever broken by force. The file says who holds it (pid, boot id, start time), for people.
//!
//! What an operation left running when its agent died holds a second file, `operation-ID.running`: whoever takes the
//! operation's lock waits for it too. See [`crate::keeper`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use tallybook_events::ids::OperationId;

use crate::durable;
use crate::layout::Layout;

const POLL: Duration = Duration::from_millis(50);

/// A lock that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its directory could not be made.
    #[error("can't make the directory of the locks")]
    Directory(#[from] durable::Error),
    /// Its file could not be used.
    #[error("can't lock {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another process held it all the time.
    #[error("{path} is still held by another agent (pid, boot and start time: {holder})")]
    Held {
        /// The file.
        path: PathBuf,
        /// What the file says of its holder.
        holder: String,
    },
    /// Whoever wanted it wants it no longer.
    #[error("gave up waiting for {path}")]
    GivenUp {
        /// The file.
        path: PathBuf,
    },
}

/// A lock that is held; dropping it releases it.
#[derive(Debug)]
#[must_use = "dropping a lock releases it"]
pub struct Held {
    file: File,
    path: PathBuf,
}

impl Held {
    /// What a program holds that may outlive this process: the lock is free only once nobody does.
    pub fn running(&self) -> PathBuf {
        self.path.with_extension("running")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Nothing runs any more by now; a file that can't be removed is harmless.
        let _ = nothing_runs(&self.running());
        // Removed while held: whoever opened it before sees, once locked, that its name is gone, and opens anew.
        // A failure leaves an empty file, which is harmless.
        let _ = fs::remove_file(&self.path);
        let _ = flock(self.file.as_fd(), FlockOperation::Unlock);
    }
}

/// Takes the lock of an operation. `give_up` is asked now and then while waiting; nothing else ends that, for
/// whoever holds it carries out a step, and a step may take as long as it does.
///
/// # Errors
/// When `give_up` says so, or the file can't be used.
pub fn operation(
    layout: &Layout,
    operation: OperationId,
    give_up: &mut dyn FnMut() -> bool,
) -> Result<Held, Error> {
    let name = format!("operation-{operation}.lock");
    let held = take(layout, &name, None, give_up)?;
    let path = held.running();
    loop {
        let free = nothing_runs(&path).map_err(|source| Error::File {
            path: path.clone(),
            source,
        })?;
        if free {
            return Ok(held);
        }
        if give_up() {
            return Err(Error::GivenUp { path });
        }
        thread::sleep(POLL);
    }
}

/// Whether nothing is left running of an operation whose lock is held; its file is removed then.
fn nothing_runs(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    match flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    // Whoever opened it before sees that its name is gone, and starts nothing.
    fs::remove_file(path)?;
    Ok(true)
}

/// Holds what keeps an operation's lock from being taken after its agent died. `None` when it is not ours to hold:
/// the agent, of this process id, is gone already.
///
/// # Errors
/// When the file can't be used.
pub fn outlive(path: &Path, agent: u32) -> io::Result<Option<File>> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    match flock(file.as_fd(), FlockOperation::NonBlockingLockShared) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    // Looked at only now: as long as this agent lives nobody else takes the operation's lock, and what it leaves
    // from here on is seen by whoever does.
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    if parent.and_then(|pid| u32::try_from(pid).ok()) != Some(agent) || !is_named(&file, path)? {
        return Ok(None);
    }
    // For people only.
    let _ = file.write_all(holder().as_bytes());
    Ok(Some(file))
}

fn said_of(path: &Path) -> String {
    let said = fs::read_to_string(path).unwrap_or_default();
    said.lines().next().unwrap_or_default().trim().to_owned()
}

/// Takes the lock of something on the host that steps of several operations write, for example `nftables`.
///
/// # Errors
/// When it is not free within `wait`, or the file can't be used.
pub fn resource(layout: &Layout, name: &'static str, wait: Duration) -> Result<Held, Error> {
    let name = format!("resource-{name}.lock");
    take(layout, &name, Some(wait), &mut || false)
}

fn take(
    layout: &Layout,
    name: &str,
    wait: Option<Duration>,
    give_up: &mut dyn FnMut() -> bool,
) -> Result<Held, Error> {
    let locks = layout.locks();
    durable::create_dirs(&locks)?;
    let path = locks.join(name);
    let at = |source: io::Error| Error::File {
        path: path.clone(),
        source,
    };
    let deadline = wait.map(|wait| Instant::now() + wait);
    loop {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(at)?;
        match flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_named(&file, &path).map_err(at)? => {
                let say = |file: &mut File| {
                    file.set_len(0)?;
                    file.write_all(holder().as_bytes())
                };
                match say(&mut file) {
                    // On a full disk nobody is told who holds it; to refuse would keep an undo from making room.
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
                    said => said.map_err(at)?,
                }
                return Ok(Held { file, path });
            }
            // Its holder removed it between our open and our lock.
            Ok(()) => continue,
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(at(error.into())),
        }
        if give_up() {
            return Err(Error::GivenUp { path });
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(Error::Held {
                holder: said_of(&path),
                path,
            });
        }
        thread::sleep(POLL);
    }
}

/// Locks an open file, for a moment; dropping the file releases it.
pub(crate) fn file(file: &File, exclusive: bool, wait: Duration) -> io::Result<()> {
    let how = if exclusive {
        FlockOperation::NonBlockingLockExclusive
    } else {
        FlockOperation::NonBlockingLockShared
    };
    let deadline = Instant::now() + wait;
    loop {
        match flock(file.as_fd(), how) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() >= deadline => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "another agent keeps it locked",
                ));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => thread::sleep(Duration::from_millis(2)),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Releases [`file`].
pub(crate) fn release(file: &File) {
    // Unlocking what is open and locked can't fail; and if it did, closing the file releases it.
    let _ = flock(file.as_fd(), FlockOperation::Unlock);
}

fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let have = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok(named.ino() == have.ino() && named.dev() == have.dev()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn holder() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let start = fs::read_to_string("/proc/self/stat")
        .ok()
        .and_then(|stat| start_time(&stat).map(str::to_owned))
        .unwrap_or_default();
    format!("{} {} {start}\n", std::process::id(), boot.trim())
}

/// The 22nd field of `/proc/PID/stat`, in clock ticks since boot: proc_pid_stat(5). The second field is a name in
/// parentheses that may itself hold spaces and parentheses.
pub(crate) fn start_time(stat: &str) -> Option<&str> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn a_lock_excludes_and_its_file_names_the_holder() {
        let temp = tempfile::tempdir().unwrap();
        let layout = Layout::below(temp.path());
        let held = resource(&layout, "nftables", NOW).unwrap();
        let error = resource(&layout, "nftables", NOW).unwrap_err();
        let Error::Held { path, holder } = error else {
            panic!("{error:?}")
        };
        let words: Vec<&str> = holder.split(' ').collect();
        assert_eq!(words[0], std::process::id().to_string());
        assert_eq!(words[1].len(), 36);
        assert!(words[2].parse::<u64>().unwrap() > 0);
        let _other = resource(&layout, "dnsmasq", NOW).unwrap();
        drop(held);
        assert!(!path.exists());
        let _again = resource(&layout, "nftables", NOW).unwrap();
    }

    #[test]
    fn waiting_ends_when_released_or_given_up() {
        let temp = tempfile::tempdir().unwrap();
        let layout = Layout::below(temp.path());
        let id = OperationId::from_bytes([7; 16]);
        let held = operation(&layout, id, &mut || false).unwrap();
        let given_up = operation(&layout, id, &mut || true);
        assert!(matches!(given_up, Err(Error::GivenUp { .. })));
        let waiting = thread::spawn({
            let layout = layout.clone();
            move || {
                let mut asked = 0;
                let held = operation(&layout, id, &mut || {
                    asked += 1;
                    false
                });
                held.map(|_| asked)
            }
        });
        thread::sleep(POLL * 2);
        drop(held);
        assert!(waiting.join().unwrap().unwrap() > 0);
    }

    #[test]
    fn an_operation_is_held_until_the_last_that_it_left_running_ends() {
        let temp = tempfile::tempdir().unwrap();
        let layout = Layout::below(temp.path());
        let id = OperationId::from_bytes([7; 16]);
        let held = operation(&layout, id, &mut || false).unwrap();
        let running = held.running();
        let parent = rustix::process::getppid().unwrap();
        let parent = u32::try_from(parent.as_raw_nonzero().get()).unwrap();
        let first = outlive(&running, parent).unwrap().unwrap();
        let second = outlive(&running, parent).unwrap().unwrap();
        drop(held);
        for left in [first, second] {
            let error = operation(&layout, id, &mut || true).unwrap_err();
            assert!(
                matches!(&error, Error::GivenUp { path } if *path == running),
                "{error}"
            );
            drop(left);
        }
        let held = operation(&layout, id, &mut || false).unwrap();
        assert!(!running.exists());
        // One whose agent is gone by now starts nothing.
        assert!(outlive(&running, u32::MAX).unwrap().is_none());
        drop(held);
        assert_eq!(fs::read_dir(layout.locks()).unwrap().count(), 0);
    }

    #[test]
    fn many_takers_never_hold_it_together() {
        let temp = tempfile::tempdir().unwrap();
        let layout = Layout::below(temp.path());
        let inside = std::sync::atomic::AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let held = resource(&layout, "x", Duration::from_secs(60)).unwrap();
                        let others = inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        assert_eq!(others, 0);
                        thread::sleep(Duration::from_millis(1));
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        drop(held);
                    }
                });
            }
        });
    }

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_time(stat), Some("4711"));
        assert_eq!(start_time("42 (x) S 1"), None);
    }
}
