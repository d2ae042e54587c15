//! Brings what the writer acknowledged into the databases, behind it: nobody waits for sled.
//!
//! It writes what the view hands to it, in that order, and is the only one that writes to the databases once they are
//! open. How far it may fall behind is bounded: then the writer waits.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
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
    /// The indexer waits for this,
    due: Condvar,
    /// and whoever waits for the indexer for this.
    done: Condvar,
}

#[derive(Default)]
struct Rung {
    /// Records that were handed over and not taken in.
    waiting: usize,
    /// How often something was handed over,
    handed: u64,
    /// and how much of that was taken in.
    taken: u64,
    /// Whether somebody waits for it.
    is_urgent: bool,
    stop: bool,
    /// Whether the indexer runs.
    runs: bool,
    /// Whether the indexer waits for something to do. It is not woken while it works, nor while it gathers.
    is_idle: bool,
}

impl Rung {
    /// Whether there is anything to do.
    fn is_due(&self) -> bool {
        self.taken < self.handed
    }
}

impl Bell {
    fn state(&self) -> MutexGuard<'_, Rung> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often something was handed over.
    fn handed(&self) -> u64 {
        self.state().handed
    }

    /// The indexer took in what had been handed over by then.
    fn taken_in(&self, handed: u64) {
        let mut state = self.state();
        state.waiting = 0;
        state.taken = handed;
        state.is_urgent &= state.is_due();
        drop(state);
        self.done.notify_all();
    }

    /// The writer handed something over.
    pub(super) fn ring(&self, waiting: usize) {
        let mut state = self.state();
        state.waiting = waiting;
        state.handed += 1;
        let wake = state.is_idle || waiting >= GATHER_MAX;
        drop(state);
        if wake {
            self.due.notify_one();
        }
    }

    /// Waits while the indexer is too far behind.
    pub(super) fn keep_up(&self) {
        let caught_up = |rung: &mut Rung| rung.waiting > BEHIND_MAX && !rung.stop;
        let _state = self.done.wait_while(self.state(), caught_up);
    }

    /// Waits until all that was handed over is taken in.
    pub(super) fn settle(&self) {
        let mut state = self.state();
        state.is_urgent = true;
        self.due.notify_one();
        let handed = state.handed;
        let _state = self
            .done
            .wait_while(state, |rung| rung.taken < handed && !rung.stop);
    }

    /// Has the indexer end, once it has taken in what is there.
    pub(super) fn stop(&self) {
        self.state().stop = true;
        self.due.notify_one();
        self.done.notify_all();
    }

    /// The same, and waits until it has.
    pub(super) fn end(&self) {
        self.stop();
        let _state = self.done.wait_while(self.state(), |rung| rung.runs);
    }

    /// Waits for something to do. `false` when the indexer is to end.
    fn wait(&self) -> bool {
        let mut state = self.state();
        state.is_idle = true;
        let idle = |rung: &mut Rung| !rung.is_due() && !rung.stop;
        let mut state = self
            .due
            .wait_while(state, idle)
            .unwrap_or_else(PoisonError::into_inner);
        state.is_idle = false;
        let few = |rung: &mut Rung| rung.waiting < GATHER_MAX && !rung.is_urgent && !rung.stop;
        let gathered = self.due.wait_timeout_while(state, GATHER, few);
        let (state, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        !state.stop
    }
}

/// Works until it is told to stop.
pub(super) fn run(shared: &Arc<Shared>) {
    shared.bell.state().runs = true;
    let _running = Running(&shared.bell);
    loop {
        let goes_on = shared.bell.wait();
        take_in(shared);
        if !goes_on {
            return;
        }
    }
}

/// While the indexer runs; also a panic ends that.
struct Running<'a>(&'a Bell);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.runs = false;
        // Nobody waits for one that is gone.
        state.stop = true;
        drop(state);
        self.0.done.notify_all();
    }
}

/// Brings in what is there.
fn take_in(shared: &Shared) {
    loop {
        // Under the view's lock: what was handed over is in the work, or was before.
        let (work, handed) = shared.change(|view| (view.work(), shared.bell.handed()));
        let Some(work) = work else {
            shared.bell.taken_in(handed);
            return;
        };
        let seq = work.seq;
        match carry_out(work) {
            Ok((block, sealed_blocks)) => {
                shared.change(|view| view.indexed_up_to(block, sealed_blocks));
                tracing::trace!(seq = seq.0, "indexed");
            }
            Err(error) => shared.change(|view| view.give_up(&error)),
        }
        shared.bell.taken_in(handed);
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
        for record in queue {
            block.push(&record);
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
