//! Times: shown in UTC, to the second; read as a date, a date with a time, or how long ago.

use std::time::{Duration, UNIX_EPOCH};

/// A text that is no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a time in UTC such as 2026-11-22 or 2026-11-22T10:00:00Z, or how long ago such as 90m or 2days"
)]
pub struct Error;

/// What `--since` and the like were given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// Microseconds since 1970-01-01 UTC.
    At(u64),
    /// So long before now.
    Ago(Duration),
}

impl Time {
    /// Microseconds since 1970-01-01 UTC.
    pub fn unix_us(self, now_unix_us: u64) -> u64 {
        match self {
            Time::At(unix_us) => unix_us,
            Time::Ago(ago) => {
                now_unix_us.saturating_sub(u64::try_from(ago.as_micros()).unwrap_or(u64::MAX))
            }
        }
    }
}

impl std::str::FromStr for Time {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        if text.is_empty() || text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Error);
        }
        let day = format!("{text}T00:00:00Z");
        let at = humantime::parse_rfc3339_weak(text).or_else(|_| humantime::parse_rfc3339(&day));
        if let Ok(at) = at {
            let since = at.duration_since(UNIX_EPOCH).map_err(|_| Error)?;
            return u64::try_from(since.as_micros())
                .map(Time::At)
                .map_err(|_| Error);
        }
        humantime::parse_duration(text)
            .map(Time::Ago)
            .map_err(|_| Error)
    }
}

/// How long something took, to the millisecond at most.
pub fn took(from_unix_us: u64, to_unix_us: u64) -> String {
    let took = Duration::from_micros(to_unix_us.saturating_sub(from_unix_us));
    let rounded = if took >= Duration::from_secs(60) {
        Duration::from_secs(took.as_secs())
    } else {
        Duration::from_millis(u64::try_from(took.as_millis()).unwrap_or(u64::MAX))
    };
    humantime::format_duration(rounded).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_times_and_ages_are_read() {
        let at = |text: &str| text.parse::<Time>().unwrap();
        assert_eq!(at("1970-01-02"), Time::At(86_400_000_000));
        assert_eq!(at("1970-01-01T00:00:01Z"), Time::At(1_000_000));
        assert_eq!(at("1970-01-01 00:01:00"), Time::At(60_000_000));
        assert_eq!(at("2h").unix_us(7_200_000_001), 1);
        assert_eq!(at("2h").unix_us(5), 0);
        for bad in ["", "17", "yesterday", "1969-01-01", "2026-13-01"] {
            assert!(bad.parse::<Time>().is_err(), "{bad:?} was taken");
        }
    }
}
