//! A bounded queue between two threads: whoever puts too much in waits, and either end can close it.
//!
//! Bounds are by weight, usually bytes, so that a few large frames can't fill the memory. An item always fits
//! into an empty queue. Never unbounded, and never waits without a limit that its caller names.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What became of an item that was put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// It is in the queue.
    Taken,
    /// There was no room within the time; it was dropped.
    Full,
    /// The queue is closed; it was dropped.
    Closed,
}

/// What came out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Got<T> {
    /// The oldest item.
    Item(T),
    /// Nothing within the time.
    Nothing,
    /// Nothing is left, and nothing will come.
    Closed,
}

struct State<T> {
    items: VecDeque<(usize, T)>,
    weight: usize,
    closed: bool,
}

/// A queue of items with a weight.
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    weight_max: usize,
}

impl<T> Queue<T> {
    /// An open, empty queue.
    pub(crate) fn new(weight_max: usize) -> Self {
        Queue {
            state: Mutex::new(State {
                items: VecDeque::new(),
                weight: 0,
                closed: false,
            }),
            changed: Condvar::new(),
            weight_max,
        }
    }

    /// Puts an item in; waits for room at most this long.
    pub(crate) fn put(&self, weight: usize, item: T, wait: Duration) -> Put {
        let deadline = Instant::now() + wait;
        let mut state = self.lock();
        loop {
            if state.closed {
                return Put::Closed;
            }
            if state.items.is_empty() || state.weight.saturating_add(weight) <= self.weight_max {
                state.weight += weight;
                state.items.push_back((weight, item));
                self.changed.notify_all();
                return Put::Taken;
            }
            match self.wait_until(state, deadline) {
                Some(guard) => state = guard,
                None => return Put::Full,
            }
        }
    }

    /// Takes the oldest item out; waits for one at most this long.
    pub(crate) fn get(&self, wait: Duration) -> Got<T> {
        let deadline = Instant::now() + wait;
        let mut state = self.lock();
        loop {
            if let Some((weight, item)) = state.items.pop_front() {
                state.weight -= weight;
                self.changed.notify_all();
                return Got::Item(item);
            }
            if state.closed {
                return Got::Closed;
            }
            match self.wait_until(state, deadline) {
                Some(guard) => state = guard,
                None => return Got::Nothing,
            }
        }
    }

    /// Lets nothing more in. What is inside can still be taken out.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Forgets what is inside, and lets nothing more in.
    pub(crate) fn discard(&self) {
        let mut state = self.lock();
        state.items.clear();
        state.weight = 0;
        state.closed = true;
        self.changed.notify_all();
    }

    /// Empties it and opens it again.
    pub(crate) fn reopen(&self) {
        let mut state = self.lock();
        state.items.clear();
        state.weight = 0;
        state.closed = false;
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until<'a>(
        &'a self,
        guard: MutexGuard<'a, State<T>>,
        deadline: Instant,
    ) -> Option<MutexGuard<'a, State<T>>> {
        let left = deadline.checked_duration_since(Instant::now())?;
        let (guard, _) = self
            .changed
            .wait_timeout(guard, left)
            .unwrap_or_else(PoisonError::into_inner);
        Some(guard)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn room_is_by_weight_and_one_item_always_fits() {
        let queue = Queue::new(10);
        assert_eq!(queue.put(50, 'a', SHORT), Put::Taken);
        assert_eq!(queue.put(1, 'b', SHORT), Put::Full);
        assert_eq!(queue.get(SHORT), Got::Item('a'));
        assert_eq!(queue.put(5, 'c', SHORT), Put::Taken);
        assert_eq!(queue.put(5, 'd', SHORT), Put::Taken);
        assert_eq!(queue.put(1, 'e', SHORT), Put::Full);
        queue.close();
        assert_eq!(queue.put(0, 'f', SHORT), Put::Closed);
        assert_eq!(queue.get(SHORT), Got::Item('c'));
        assert_eq!(queue.get(SHORT), Got::Item('d'));
        assert_eq!(queue.get(SHORT), Got::Closed);
    }

    #[test]
    fn discarding_frees_whoever_waits_for_room() {
        let queue = Arc::new(Queue::new(1));
        assert_eq!(queue.put(1, 1, SHORT), Put::Taken);
        let other = Arc::clone(&queue);
        let waiting = thread::spawn(move || other.put(1, 2, LONG));
        thread::sleep(SHORT);
        queue.discard();
        assert_eq!(waiting.join().unwrap(), Put::Closed);
        queue.reopen();
        assert_eq!(queue.get(SHORT), Got::Nothing);
    }
}
