//! This boot of the host: its id, and whether it came after something.

use std::fs;

use rustix::time::{ClockId, clock_gettime};
use tallybook_events::ids::BootId;
use tallybook_events::step::{FailureClass, Receipt, StepFailure};

use crate::lock;
use crate::serve::now_unix_us;
use crate::step::{failure, io_failure};

/// Within how many seconds of the kernel's start a first process is the machine's own, and not a container's.
const WITH_KERNEL_S: u64 = 60;

/// The kernel's id of this boot.
///
/// # Errors
/// When it can't be read.
pub(crate) fn id() -> Result<BootId, StepFailure> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(path)
        .map_err(|error| io_failure("read the boot's id from", path.as_ref(), &error))?;
    text.trim()
        .parse()
        .map_err(|error| failure(FailureClass::Host, &error))
}

/// Whether the host has booted since a receipt was written. A host that is a container itself has the boot id of the machine below
/// it: there its first process is younger than the receipt. On a machine of its own that is not looked at, for its clock may have been set.
///
/// # Errors
/// When the boot's id can't be read.
pub(crate) fn came_after(receipt: &Receipt) -> Result<bool, StepFailure> {
    let is_younger = || container_began_unix_us().is_some_and(|began| began > receipt.time_unix_us);
    Ok(receipt.boot != id()? || is_younger())
}

/// When the first process began, by this host's clock of now; `None` where that was with the kernel, or is not known.
fn container_began_unix_us() -> Option<u64> {
    let stat = fs::read_to_string("/proc/1/stat").ok()?;
    let ticks: u64 = lock::start_time(&stat)?.parse().ok()?;
    let began_us = ticks.checked_mul(1_000_000 / rustix::param::clock_ticks_per_second())?;
    if began_us < WITH_KERNEL_S * 1_000_000 {
        return None;
    }
    let up = clock_gettime(ClockId::Boottime);
    let up_us = u64::try_from(up.tv_sec).ok()? * 1_000_000 + u64::try_from(up.tv_nsec).ok()? / 1000;
    now_unix_us().checked_sub(up_us.checked_sub(began_us)?)
}
