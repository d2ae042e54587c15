//! Asking something that may never answer: a file system that a container has mounted, and that the container's own
//! processes serve, answers when they please.
//!
//! It never waits longer than it was told. What does not answer keeps a thread until it does, or the process ends.

use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

/// What `ask` says, unless it takes longer than `within`, or no thread can be had for it.
pub(crate) fn answer<T: Send + 'static>(
    within: Duration,
    ask: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (say, heard) = sync_channel(1);
    let asked = thread::Builder::new()
        .name("deadline".to_owned())
        .spawn(move || say.send(ask()).is_ok());
    asked.ok()?;
    heard.recv_timeout(within).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::File;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use super::*;

    /// A mount whose file system never answers: everything that asks it waits until this is dropped.
    pub(crate) struct Silent {
        at: PathBuf,
        /// The connection: with it, the waiting ends.
        _serves: File,
    }

    impl Silent {
        pub(crate) fn mount(at: &Path) -> Self {
            let serves = File::options()
                .read(true)
                .write(true)
                .open("/dev/fuse")
                .unwrap();
            let options = "fd=0,rootmode=40000,user_id=0,group_id=0";
            let mounted = Command::new("mount")
                .args(["-i", "-t", "fuse", "-o", options, "silent"])
                .arg(at)
                .stdin(serves.try_clone().unwrap())
                .status()
                .unwrap();
            assert!(mounted.success());
            Silent {
                at: at.to_owned(),
                _serves: serves,
            }
        }
    }

    impl Drop for Silent {
        fn drop(&mut self) {
            rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
    }

    #[test]
    fn what_does_not_answer_is_not_waited_for() {
        let temp = tempfile::tempdir().unwrap();
        let silent = Silent::mount(temp.path());
        let asked = temp.path().join("x");
        let answered = answer(Duration::from_millis(300), move || asked.exists());
        assert_eq!(answered, None);
        drop(silent);
        let asked = temp.path().join("x");
        let answered = answer(Duration::from_secs(60), move || asked.exists());
        assert_eq!(answered, Some(false));
    }
}
