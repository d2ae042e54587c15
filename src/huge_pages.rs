//! Whether the kernel may back this program's memory with transparent huge pages. It may not: docs/decisions/0021.
//!
//! What is started inherits that, through every program on the way, so a container that a local host starts would have to do without
//! them for as long as it runs. Must never reach what is started for others.

use std::sync::{Mutex, PoisonError};

use rustix::thread::disable_transparent_huge_pages;

/// Whether this program turned them off: what somebody else turned off stays so.
static IS_OURS: Mutex<bool> = Mutex::new(false);

/// Has the kernel use none for this process.
pub fn turn_off() {
    let mut is_ours = IS_OURS.lock().unwrap_or_else(PoisonError::into_inner);
    let is_off = rustix::thread::transparent_huge_pages_are_disabled().unwrap_or(true);
    // Where that can't be had, things are only slower.
    *is_ours |= !is_off && disable_transparent_huge_pages(true).is_ok();
}

/// Starts a program, which is left with what this one was started with.
pub(crate) fn spawn<T>(start: impl FnOnce() -> T) -> T {
    let is_ours = IS_OURS.lock().unwrap_or_else(PoisonError::into_inner);
    if *is_ours {
        let _inherited = disable_transparent_huge_pages(false);
    }
    let started = start();
    if *is_ours {
        let _slower = disable_transparent_huge_pages(true);
    }
    started
}
