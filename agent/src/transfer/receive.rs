//! The receiving end: makes a tree in a staging directory from what is there already, what other trees of this
//! host hold, and what the sending end gives; in this order.
//!
//! The sending end is not trusted. Nothing is acted on before the manifest has the id that the controller expects;
//! no content is written before its hash is the manifest's; the tree is not called whole before all of it was
//! read back. What was interrupted stays, and is gone on with: what had arrived is not asked for again.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::Mode;
use serde::{Deserialize, Serialize};
use tallybook_events::ids::Hash;
use tallybook_events::step::{FailureClass, StepFailure};

use super::journal::{Journal, Record};
use super::local;
use super::message::{self, Failed, FromReceiver, FromSender};
use super::pieces::Pieces;
use super::staged::Staged;
use super::{each, wire};
use crate::layout::Layout;
use crate::step::{Link, fail, failure, io_failure};
use crate::tree::beneath::Root;
use crate::tree::manifest::{self, Manifest};
use crate::tree::unpack;

/// The journal's name in the staging directory.
pub const JOURNAL: &str = "received";
/// How many differences an error quotes.
const QUOTED_MAX: usize = 5;

/// What is to be received, and from where.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// The id that the manifest must have.
    pub expect: Hash,
    /// What it is, for people.
    pub what: &'a str,
    /// The directory it is made in: `rootfs/`, `manifest` and `received`.
    pub staging: &'a Path,
}

/// What was received and where it came from. Bytes are of content, each distinct piece counted once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Received {
    /// The manifest's id.
    pub manifest: Hash,
    /// How many names the tree has.
    pub entries: u64,
    /// Its content, holes left out, hard links once.
    pub size_bytes: u64,
    /// Pieces that were there from before an interruption.
    pub resumed_pieces: u64,
    /// Their bytes.
    pub resumed_bytes: u64,
    /// Pieces found in other trees of this host.
    pub local_pieces: u64,
    /// Their bytes.
    pub local_bytes: u64,
    /// Pieces that came over the line.
    pub received_pieces: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// The same, as they were sent: compressed.
    pub wire_bytes: u64,
    /// Damage that was found in what an interrupted attempt had left, and made good.
    pub repaired: Option<String>,
}

/// Receives a tree.
///
/// # Errors
/// When the line or the other end fails, the disk is full, or anything is not what the manifest says. What has
/// arrived stays in the staging directory.
pub fn receive(
    link: &mut dyn Link,
    layout: &Layout,
    order: &Order<'_>,
) -> Result<Received, StepFailure> {
    let outcome = run(link, layout, order);
    if let Err(error) = &outcome {
        // If the line is what failed, the other end learns of it by itself.
        let _lost = message::send(link, FromReceiver::Failed(Failed::of(error)));
    }
    outcome
}

fn run(link: &mut dyn Link, layout: &Layout, order: &Order<'_>) -> Result<Received, StepFailure> {
    let (offer, manifest_len) = match next(link)? {
        FromSender::Offer {
            manifest,
            manifest_len,
        } => (manifest, manifest_len),
        other => return Err(unexpected(&other)),
    };
    if offer != order.expect {
        let message = format!(
            "the sending end offers {offer} as {}, and not {}",
            order.what, order.expect
        );
        return Err(fail(FailureClass::Verification, message));
    }
    let root = rootfs(order.staging)?;
    let mut repaired = Vec::new();
    let bytes = manifest_bytes(link, layout, order, manifest_len, &mut repaired)?;
    let manifest = Manifest::decode(&bytes).map_err(|e| bad_manifest(order, &e))?;
    let pieces = Pieces::of(&manifest).map_err(|e| bad_manifest(order, &e))?;
    let path = order.staging.join(JOURNAL);
    let (journal, told) = Journal::open(&path, order.expect)?;
    repaired.extend(told.damage);
    let mut staged = Staged::new(&root, &pieces, journal, order.what);
    staged.received = Received {
        manifest: order.expect,
        entries: manifest.entries().len() as u64,
        size_bytes: manifest.content_len(),
        ..Received::default()
    };
    staged.settle(&manifest)?;
    each::resume(&mut staged, link, &told.records, &mut repaired)?;
    let failed = |e: crate::tree::Error| e.failure(root.label());
    unpack::make_directories(&root, &manifest).map_err(failed)?;
    let wanted = staged.missing().into_iter();
    let wanted = wanted.map(|number| pieces.piece(number).hash).collect();
    let sources = local::sources(layout, wanted);
    each::share(&mut staged, link, &manifest, &sources)?;
    check_space(&staged, &manifest, told.records.is_empty())?;
    each::copy(&mut staged, link, &sources)?;
    wire::fetch(&mut staged, link)?;
    message::send(link, FromReceiver::Done)?;
    unpack::complete(&root, &manifest).map_err(failed)?;
    verify(link, &root, &manifest, order)?;
    staged.received.repaired = (!repaired.is_empty()).then(|| repaired.join("; "));
    finish(staged, order)
}

/// The next message that says something.
pub(super) fn next(link: &mut dyn Link) -> Result<FromSender, StepFailure> {
    loop {
        match message::receive(link)? {
            FromSender::Working => {}
            FromSender::Failed(failed) => return Err(failed.failure("sending")),
            other => return Ok(other),
        }
        if link.stop_requested() {
            return Err(interrupted());
        }
    }
}

pub(super) fn unexpected(message: &FromSender) -> StepFailure {
    let what = match message {
        FromSender::Offer { .. } => "an offer",
        FromSender::Manifest { .. } => "a part of a manifest",
        FromSender::Pack(_) => "content",
        FromSender::Working => "a sign of life",
        FromSender::Failed(_) => "a failure",
    };
    fail(
        FailureClass::Peer,
        format!("the sending end sent {what} where that makes no sense"),
    )
}

pub(super) fn interrupted() -> StepFailure {
    let mut failure = fail(FailureClass::Interrupted, "stopped when asked to");
    failure.hint = Some("resume the operation: what has arrived is not sent again".to_owned());
    failure
}

fn bad_manifest(order: &Order<'_>, error: &dyn std::error::Error) -> StepFailure {
    let mut failure = failure(FailureClass::Verification, error);
    failure.message = format!(
        "the manifest of {} is no good: {}",
        order.what, failure.message
    );
    failure
}

/// The directory that the tree is made in, which nobody else may enter.
fn rootfs(staging: &Path) -> Result<Root, StepFailure> {
    let beside = Root::open(staging).map_err(|e| e.failure(staging))?;
    let path = Path::new("rootfs");
    beside
        .create_dir_all(path, Mode::RWXU.as_raw_mode())
        .and_then(|()| beside.subtree(path))
        .map_err(|e| e.failure(staging))
}

/// The manifest's bytes: from an attempt before this one, a generation of this host, or the sending end. They have
/// the expected id, and are in the staging directory.
fn manifest_bytes(
    link: &mut dyn Link,
    layout: &Layout,
    order: &Order<'_>,
    len: u64,
    repaired: &mut Vec<String>,
) -> Result<Vec<u8>, StepFailure> {
    let beside = Root::open(order.staging).map_err(|e| e.failure(order.staging))?;
    let path = Path::new("manifest");
    let len_max = usize::try_from(manifest::LEN_MAX).unwrap_or(usize::MAX);
    match beside.read_optional(path, len_max) {
        Ok(Some(bytes)) if manifest::id_of(&bytes) == order.expect => return Ok(bytes),
        Ok(None) => {}
        Ok(Some(_)) | Err(_) => {
            repaired.push(format!(
                "{} was damaged",
                order.staging.join(path).display()
            ));
        }
    }
    let bytes = match local::manifest(layout, order.expect, len) {
        Some(bytes) => bytes,
        None => fetch_manifest(link, order, len)?,
    };
    beside
        .write_atomic(path, &bytes, 0o600, (0, 0))
        .map_err(|e| e.failure(order.staging))?;
    Ok(bytes)
}

pub(super) fn fetch_manifest(
    link: &mut dyn Link,
    order: &Order<'_>,
    len: u64,
) -> Result<Vec<u8>, StepFailure> {
    let wrong = |what: &str| {
        let message = format!("the manifest of {} is no good: {what}", order.what);
        fail(FailureClass::Verification, message)
    };
    if len > manifest::LEN_MAX {
        return Err(wrong("it is too long"));
    }
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    message::send(link, FromReceiver::WantManifest)?;
    let mut bytes = Vec::new();
    while bytes.len() < len {
        link.progress("receiving the manifest", bytes.len() as u64, len as u64);
        match next(link)? {
            FromSender::Manifest {
                len: part_len,
                bytes: part,
            } => {
                let part_len = part_len as usize;
                let fits = part_len > 0 && part_len <= message::MANIFEST_CHUNK_LEN;
                if !fits || part_len > len - bytes.len() {
                    return Err(wrong("it is longer than was said"));
                }
                let part = zstd::bulk::decompress(&part.0, part_len)
                    .map_err(|e| wrong(&format!("a part can't be decompressed: {e}")))?;
                if part.len() != part_len {
                    return Err(wrong("a part has another length than was said"));
                }
                bytes.extend_from_slice(&part);
            }
            other => return Err(unexpected(&other)),
        }
    }
    let id = manifest::id_of(&bytes);
    if id == order.expect {
        Ok(bytes)
    } else {
        Err(wrong(&format!("it is {id}, not {}", order.expect)))
    }
}

/// Whether what is missing has room, so that a disk is not filled in vain.
fn check_space(staged: &Staged<'_>, manifest: &Manifest, fresh: bool) -> Result<(), StepFailure> {
    let path = staged.root.label();
    let room = rustix::fs::fstatvfs(staged.root)
        .map_err(|e| io_failure("asking for free space on", path, &e.into()))?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    // Each name takes a little, too: a block for a directory, an inode, a place in a directory.
    let names = if fresh {
        manifest.entries().len() as u64
    } else {
        0
    };
    let need = staged.space_needed().saturating_add(names * 512);
    let enough_inodes = room.f_files == 0 || names <= room.f_favail;
    if need <= free && enough_inodes {
        return Ok(());
    }
    let mut failure = fail(
        FailureClass::DiskFull,
        format!(
            "{} needs {need} bytes and {names} inodes more on the file system of {}; {free} bytes and {} inodes are free",
            staged.what,
            path.display(),
            room.f_favail
        ),
    );
    failure.hint = Some(format!(
        "free space on the file system of {}",
        path.display()
    ));
    Err(failure)
}

/// Reads everything back.
fn verify(
    link: &mut dyn Link,
    root: &Root,
    manifest: &Manifest,
    order: &Order<'_>,
) -> Result<(), StepFailure> {
    let found = manifest.verify(root.as_fd(), &mut |hashed| {
        link.progress("verifying", hashed.done, hashed.total);
        if link.stop_requested() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    let found = found.map_err(|e| e.failure(root.label()))?;
    let wrong: Vec<String> = found
        .iter()
        .filter(|difference| difference.counts())
        .map(ToString::to_string)
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    let quoted = wrong[..wrong.len().min(QUOTED_MAX)].join("; ");
    let mut failure = fail(
        FailureClass::Verification,
        format!(
            "{} as written to {} is not what its manifest says, in {} points: {quoted}",
            order.what,
            root.label().display(),
            wrong.len()
        ),
    );
    failure.hint = Some("check the disk of this host, then resume the operation".to_owned());
    Err(failure)
}

fn finish(mut staged: Staged<'_>, order: &Order<'_>) -> Result<Received, StepFailure> {
    staged.flush()?;
    // Crash boundary: with this record the tree is whole; before it, it is one to go on with.
    let received = staged.received.clone();
    staged.sync()?;
    staged
        .journal
        .append(&[Record::Complete(received.clone())])?;
    let beside = Root::open(order.staging).map_err(|e| e.failure(order.staging))?;
    rustix::fs::fsync(beside.as_fd())
        .map_err(|e| io_failure("syncing", order.staging, &e.into()))?;
    Ok(received)
}

/// What a finished transfer in a staging directory had reported.
///
/// # Errors
/// When it can't be read.
pub fn completed(staging: &Path, expect: Hash) -> Result<Option<Received>, StepFailure> {
    let told = super::journal::read(&staging.join(JOURNAL), expect)?;
    Ok(told.and_then(|told| {
        told.records
            .into_iter()
            .rev()
            .find_map(|record| match record {
                Record::Complete(received) => Some(received),
                Record::Pack { .. } | Record::Local { .. } => None,
            })
    }))
}
