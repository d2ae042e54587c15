//! Brings what the writer acknowledged into the databases, behind it: nobody waits for sled.
//!
//! It writes what the view hands to it, in that order, and is the only one that writes to the databases once they are
//! open. How far it may fall behind is bounded: then the writer waits.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::holder::Shared;
use super::view::Work;
use crate::store::{self, Block};

/// The writer waits when so many records are not indexed.
const BEHIND_MAX: usize = 16 * 1024;
/// How long what comes is gathered before it is brought in together.
const GATHER: Duration = Duration::from_millis(5);
/// So many records are brought in at once without waiting for more.
const GATHER_MAX: usize = 1024;

/// How writer and indexer tell each other.
#[derive(Default)]
pub(super) struct Bell {
    state: Mutex<Rung>,
    rung: Condvar,
}

#[derive(Default)]
struct Rung {
    /// Records that were handed over and not taken in.
    waiting: usize,
    /// Whether there is anything to do.
    is_due: bool,
    /// Whether somebody waits for it.
    is_urgent: bool,
    stop: bool,
}

impl Bell {
    fn change(&self, change: impl FnOnce(&mut Rung)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.rung.notify_all();
    }

    /// The writer handed something over.
    pub(super) fn ring(&self, waiting: usize) {
        self.change(|rung| {
            rung.waiting = waiting;
            rung.is_due = true;
        });
    }

    /// Waits while the indexer is too far behind.
    pub(super) fn keep_up(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let caught_up = |rung: &mut Rung| rung.waiting > BEHIND_MAX && !rung.stop;
        let _state = self.rung.wait_while(state, caught_up);
    }

    /// Waits until all that was handed over is taken in.
    pub(super) fn settle(&self) {
        self.change(|rung| rung.is_urgent = true);
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let _state = self
            .rung
            .wait_while(state, |rung| rung.is_due && !rung.stop);
    }

    /// Has the indexer end, once it has taken in what is there.
    pub(super) fn stop(&self) {
        self.change(|rung| rung.stop = true);
    }

    /// Waits for something to do. `false` when the indexer is to end.
    fn wait(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |rung: &mut Rung| !rung.is_due && !rung.stop;
        let state = self
            .rung
            .wait_while(state, idle)
            .unwrap_or_else(PoisonError::into_inner);
        let few = |rung: &mut Rung| rung.waiting < GATHER_MAX && !rung.is_urgent && !rung.stop;
        let gathered = self.rung.wait_timeout_while(state, GATHER, few);
        let (state, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        !state.stop
    }
}

/// Works until it is told to stop.
pub(super) fn run(shared: &Arc<Shared>) {
    loop {
        let goes_on = shared.bell.wait();
        take_in(shared);
        if !goes_on {
            return;
        }
    }
}

/// Brings in what is there.
fn take_in(shared: &Shared) {
    loop {
        let work = shared.change(|view| {
            let work = view.work();
            if work.is_none() {
                // Under the view's lock: nothing can be handed over meanwhile.
                shared.bell.change(|rung| {
                    rung.is_due = false;
                    rung.is_urgent = false;
                    rung.waiting = 0;
                });
            }
            work
        });
        let Some(work) = work else { return };
        let seq = work.seq;
        match carry_out(work) {
            Ok((block, sealed_blocks)) => {
                shared.change(|view| view.indexed_up_to(block, sealed_blocks));
                tracing::trace!(seq = seq.0, "indexed");
            }
            Err(error) => shared.change(|view| view.give_up(&error)),
        }
        shared.bell.change(|rung| rung.waiting = 0);
    }
}

fn carry_out(work: Work) -> Result<(Block, u64), store::Error> {
    let Work {
        staged,
        index,
        mut block,
        queue,
        seq: _,
    } = work;
    let mut sealed_blocks = 0;
    if let Some(index) = index {
        for (record, start, end) in queue {
            block.push(&record, start, end);
            if block.is_full() {
                index.seal(&block)?;
                sealed_blocks = index.block_count();
                block = block.following();
            }
        }
    }
    if let Some(staged) = staged {
        staged.write()?;
    }
    Ok((block, sealed_blocks))
}
