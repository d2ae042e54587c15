//! The controller's clock and its randomness: the one place both come from.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use tallybook_events::ids::{EventId, LogId, OperationId};

/// Microseconds since 1970-01-01 UTC.
pub fn now_unix_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_micros()).ok())
        .unwrap_or_default()
}

/// How many random bytes a thread asks for at once.
const RANDOM_LEN: usize = 1024;

/// Random bytes that were not given out yet: those behind `given`.
struct Random {
    bytes: [u8; RANDOM_LEN],
    given: usize,
}

thread_local! {
    static RANDOM: RefCell<Random> = const {
        RefCell::new(Random {
            bytes: [0; RANDOM_LEN],
            given: RANDOM_LEN,
        })
    };
}

/// Bytes from the kernel's generator, which is asked for many at once. None is given out twice, and none is kept: a salt
/// that was erased must be nowhere.
///
/// # Panics
/// When the kernel has none to give: nothing that follows could be trusted.
pub fn random<const N: usize>() -> [u8; N] {
    const { assert!(N <= RANDOM_LEN) };
    RANDOM.with_borrow_mut(|random| {
        if random.given + N > RANDOM_LEN {
            #[expect(
                clippy::expect_used,
                reason = "without randomness no id and no salt can be made"
            )]
            getrandom::fill(&mut random.bytes).expect("the kernel has no randomness to give");
            random.given = 0;
        }
        let mut bytes = [0; N];
        let given = &mut random.bytes[random.given..random.given + N];
        bytes.copy_from_slice(given);
        given.fill(0);
        random.given += N;
        bytes
    })
}

/// A new event's id.
pub fn event_id() -> EventId {
    EventId::new(now_unix_us() / 1000, random())
}

/// A new operation's id.
pub fn operation_id() -> OperationId {
    OperationId::new(now_unix_us() / 1000, random())
}

/// A new log's id.
pub fn log_id() -> LogId {
    LogId::new(now_unix_us() / 1000, random())
}

/// The first second that RFC 3339 has no form for: the year 10000.
const SECONDS_END: u64 = 253_402_300_800;

/// A time as RFC 3339 in UTC, to the second; a time beyond the year 9999 as `@` and its seconds since 1970.
pub fn rfc3339(unix_us: u64) -> String {
    let seconds = unix_us / 1_000_000;
    if seconds >= SECONDS_END {
        return format!("@{seconds}");
    }
    let time = UNIX_EPOCH + std::time::Duration::from_micros(unix_us);
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_a_form() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(SECONDS_END * 1_000_000 - 1), "9999-12-31T23:59:59Z");
        assert_eq!(rfc3339(u64::MAX), "@18446744073709");
    }
}
