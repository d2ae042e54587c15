//! A tree that is being received: which pieces it has, and which of them are durable and journalled.

use std::time::{Duration, Instant};

use tallybook_events::step::StepFailure;

use super::journal::{Journal, Record};
use super::pieces::Pieces;
use super::receive::Received;
use crate::step::{Link, io_failure};
use crate::tree::beneath::Root;
use crate::tree::manifest::Manifest;
use crate::tree::unpack::Hand;

/// How much may be written before it is made durable and journalled.
const UNSYNCED_MAX: u64 = 64 * 1024 * 1024;
/// How long it may take until then.
const UNSYNCED_TIME: Duration = Duration::from_secs(5);

pub(super) struct Staged<'a> {
    pub(super) root: &'a Root,
    pub(super) pieces: &'a Pieces<'a>,
    pub(super) journal: Journal,
    pub(super) what: &'a str,
    pub(super) received: Received,
    /// Which pieces are in all their places.
    have: Vec<bool>,
    /// What was written and not journalled yet.
    pending: Vec<Record>,
    pending_bytes: u64,
    /// Why nothing is journalled any more: a sync failed, and what was written before it may be in memory only.
    lost: Option<StepFailure>,
    flushed: Instant,
    done_bytes: u64,
    total_bytes: u64,
}

impl<'a> Staged<'a> {
    pub(super) fn new(
        root: &'a Root,
        pieces: &'a Pieces<'a>,
        journal: Journal,
        what: &'a str,
    ) -> Self {
        Staged {
            root,
            pieces,
            journal,
            what,
            received: Received::default(),
            have: vec![false; pieces.count() as usize],
            pending: Vec::new(),
            pending_bytes: 0,
            lost: None,
            flushed: Instant::now(),
            done_bytes: 0,
            total_bytes: pieces.len_of(0..pieces.count()),
        }
    }

    pub(super) fn has(&self, number: u32) -> bool {
        self.have[number as usize]
    }

    /// The pieces that are not there, in order.
    pub(super) fn missing(&self) -> Vec<u32> {
        (0..self.pieces.count()).filter(|n| !self.has(*n)).collect()
    }

    /// How many bytes the missing ones take in all their places.
    pub(super) fn space_needed(&self) -> u64 {
        let places = |number: u32| self.pieces.places(number).len() as u64;
        let missing = self.missing().into_iter();
        missing.fold(0, |sum: u64, number| {
            let len = u64::from(self.pieces.piece(number).len);
            sum.saturating_add(len.saturating_mul(places(number)))
        })
    }

    /// These were there from before; their number of bytes.
    pub(super) fn resumed(&mut self, numbers: &[u32]) {
        let bytes = self.mark(numbers);
        self.received.resumed_pieces += numbers.len() as u64;
        self.received.resumed_bytes += bytes;
        // Progress is about what was still to be done.
        self.total_bytes = self.total_bytes.saturating_sub(bytes);
    }

    /// These were found on this host, and written.
    pub(super) fn found(
        &mut self,
        link: &mut dyn Link,
        numbers: &[u32],
    ) -> Result<(), StepFailure> {
        if numbers.is_empty() {
            return Ok(());
        }
        let bytes = self.mark(numbers);
        self.received.local_pieces += numbers.len() as u64;
        self.received.local_bytes += bytes;
        self.pending.push(Record::Local {
            pieces: super::pieces::ranges(numbers.iter().copied()),
        });
        self.wrote(link, "copying from this host", bytes)
    }

    /// These came in a pack, and were written.
    pub(super) fn arrived(
        &mut self,
        link: &mut dyn Link,
        record: Record,
        numbers: &[u32],
        wire_bytes: u64,
    ) -> Result<(), StepFailure> {
        let bytes = self.mark(numbers);
        self.received.received_pieces += numbers.len() as u64;
        self.received.received_bytes += bytes;
        self.received.wire_bytes += wire_bytes;
        self.pending.push(record);
        self.wrote(link, "receiving", bytes)
    }

    fn mark(&mut self, numbers: &[u32]) -> u64 {
        for number in numbers {
            self.have[*number as usize] = true;
        }
        self.pieces.len_of(numbers.iter().copied())
    }

    fn wrote(&mut self, link: &mut dyn Link, doing: &str, bytes: u64) -> Result<(), StepFailure> {
        self.done_bytes += bytes;
        self.pending_bytes += bytes;
        link.progress(doing, self.done_bytes, self.total_bytes);
        if self.pending_bytes >= UNSYNCED_MAX || self.flushed.elapsed() >= UNSYNCED_TIME {
            self.flush()?;
        }
        Ok(())
    }

    /// Makes what was written durable, then journals it.
    pub(super) fn flush(&mut self) -> Result<(), StepFailure> {
        if !self.pending.is_empty() {
            self.sync()?;
            // Crash boundary: what is durable and not journalled is asked for again.
            self.journal.append(&self.pending)?;
            self.pending.clear();
        }
        self.pending_bytes = 0;
        self.flushed = Instant::now();
        Ok(())
    }

    /// Makes everything in the tree durable. Once that failed, it fails for good: a later sync that succeeds says nothing
    /// of what this one was to write.
    pub(super) fn sync(&mut self) -> Result<(), StepFailure> {
        if let Some(failure) = &self.lost {
            return Err(failure.clone());
        }
        rustix::fs::syncfs(self.root).map_err(|e| {
            let mut failure = io_failure("syncing", self.root.label(), &e.into());
            failure.message = format!(
                "what was received may not be on the disk: {}",
                failure.message
            );
            self.lost = Some(failure.clone());
            failure
        })
    }

    /// Makes sure that what is read of the tree, and written again, is on the disk: an attempt before this one may have
    /// met a sync that failed, after which memory holds what the disk has not.
    pub(super) fn settle(&self, manifest: &Manifest) -> Result<(), StepFailure> {
        let failed = |e: rustix::io::Errno| io_failure("syncing", self.root.label(), &e.into());
        // An error of a write that nobody waited for is told once. What it concerns is lost, and not read.
        let synced = rustix::fs::syncfs(self.root).or_else(|_| rustix::fs::syncfs(self.root));
        synced.map_err(failed)?;
        let mut hand = Hand::new(self.root);
        for entry in manifest.entries() {
            if entry.content().is_some() {
                hand.drop_memory(&entry.path)
                    .map_err(|e| e.failure(self.root.label()))?;
            }
        }
        Ok(())
    }
}
