//! An overlay seen as one tree, read-only, without its being mounted anywhere.
//!
//! The kernel merges the layers, so whiteouts, opaque directories and renames mean what they mean to the
//! container. The mount is never attached to a place: no other process sees it, nothing has to be unmounted, and
//! it is gone with its descriptor, however this process ends.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::tree::{Error, Root};

/// The merged tree of these layers, the uppermost first. None of them may change meanwhile.
///
/// # Errors
/// When a layer can't be opened, or the kernel can't merge them.
pub fn merged(layers: &[PathBuf]) -> Result<Root, Error> {
    let top = layers.first().map_or(Path::new(""), PathBuf::as_path);
    let open: Vec<OwnedFd> = layers
        .iter()
        .map(|layer| Root::open(layer)?.dir(Path::new("")))
        .collect::<Result<_, _>>()?;
    // By descriptor: the kernel takes 255 bytes at most here, and a layer's path may hold what separates layers.
    let lower: Vec<String> = open
        .iter()
        .map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .collect();
    let mount = || {
        let overlay = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&overlay, "lowerdir", lower.join(":"))?;
        rustix::mount::fsconfig_create(&overlay)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV;
        rustix::mount::fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    let tree = mount().map_err(|errno: rustix::io::Errno| Error::Io {
        doing: "merge the layers of the overlay",
        path: top.to_owned(),
        source: errno.into(),
    })?;
    Ok(Root::from_fd(tree, top))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::ops::ControlFlow;
    use std::os::fd::AsFd;
    use std::process::Command;

    use super::*;
    use crate::tree::copy::{How, copy_tree};
    use crate::tree::walk::Vanished;

    #[test]
    fn layers_are_merged_as_the_kernel_does_and_nothing_is_left_mounted() {
        let temp = tempfile::tempdir().expect("tempdir");
        let (lower, upper) = (temp.path().join("lo:wer"), temp.path().join("upper"));
        let script = "mkdir -p 'lo:wer/dir' 'lo:wer/opaque' upper/dir upper/opaque
            echo old > 'lo:wer/dir/replaced'; echo low > 'lo:wer/dir/kept'; echo gone > 'lo:wer/removed'
            echo hidden > 'lo:wer/opaque/hidden'; ln 'lo:wer/dir/kept' 'lo:wer/dir/linked'
            echo new > upper/dir/replaced; mknod upper/removed c 0 0
            setfattr -n trusted.overlay.opaque -v y upper/opaque; echo top > upper/opaque/seen";
        let made = Command::new("sh")
            .args(["-ec", script])
            .current_dir(&temp)
            .status();
        assert!(made.expect("sh").success());
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let tree = merged(&[upper, lower]).expect("merge");
        assert_eq!(
            fs::read_to_string("/proc/self/mounts").expect("mounts"),
            mounts
        );
        let into = temp.path().join("flat");
        fs::create_dir(&into).expect("mkdir");
        let dest = Root::open(&into).expect("open");
        copy_tree(
            tree.as_fd(),
            dest.as_fd(),
            How::Copy,
            Vanished::Refuse,
            &mut |_| ControlFlow::Continue(()),
        )
        .expect("copy");
        let read = |path: &str| fs::read_to_string(into.join(path)).ok();
        assert_eq!(read("dir/replaced").as_deref(), Some("new\n"));
        assert_eq!(read("dir/kept").as_deref(), Some("low\n"));
        assert_eq!(read("opaque/seen").as_deref(), Some("top\n"));
        assert!(!into.join("opaque/hidden").exists() && !into.join("removed").exists());
        assert!(
            fs::symlink_metadata(into.join("removed")).is_err(),
            "a whiteout was copied"
        );
        let nlink = std::os::unix::fs::MetadataExt::nlink(
            &fs::metadata(into.join("dir/kept")).expect("stat"),
        );
        assert_eq!(nlink, 2);
        let attributes = Command::new("getfattr")
            .args(["-d", "-m", "-", "opaque"])
            .current_dir(&into)
            .output()
            .expect("getfattr");
        assert!(
            attributes.stdout.is_empty(),
            "attributes of the overlay were copied"
        );
    }
}
