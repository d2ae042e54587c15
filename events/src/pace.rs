//! How far an operation on many hosts goes at once, and how many of them may fail before it begins no further one.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How an operation goes over its hosts. Nothing of it: as fast as it can, to the last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// How many hosts may have begun and not ended their steps.
    pub serial: Option<NonZeroU32>,
    /// How many hosts may fail, or not be reached: with more, no further one is begun.
    pub max_fail: Option<MaxFail>,
}

/// How many hosts may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MaxFail {
    /// So many.
    Hosts(u32),
    /// So many in a hundred of those that the operation has steps on.
    Percent(u8),
}

/// Text that says no number of hosts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a number of hosts nor a percentage from 0% to 100%")]
pub struct Error(String);

impl MaxFail {
    /// Whether so many of so many hosts are too many.
    pub fn is_exceeded_by(self, failed: usize, of: usize) -> bool {
        match self {
            MaxFail::Hosts(most) => failed > most as usize,
            MaxFail::Percent(most) => failed * 100 > usize::from(most) * of,
        }
    }
}

impl FromStr for MaxFail {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let none = || Error(text.to_owned());
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
        let number = text.strip_suffix('%').unwrap_or(text);
        if !is_number(number) {
            return Err(none());
        }
        if number.len() == text.len() {
            return number.parse().map(MaxFail::Hosts).map_err(|_| none());
        }
        match number.parse() {
            Ok(percent @ 0..=100) => Ok(MaxFail::Percent(percent)),
            Ok(_) | Err(_) => Err(none()),
        }
    }
}

impl fmt::Display for MaxFail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MaxFail::Hosts(most) => write!(f, "{most}"),
            MaxFail::Percent(most) => write!(f, "{most}%"),
        }
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let serial = self.serial.map(|most| format!("at most {most} at once"));
        let max_fail = self.max_fail.map(|most| format!("at most {most} may fail"));
        let said: Vec<String> = serial.into_iter().chain(max_fail).collect();
        match said.as_slice() {
            [] => f.write_str("all hosts, as fast as can be"),
            said => write!(f, "hosts: {}", said.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::MaxFail;

    #[test]
    fn a_limit_is_read_as_it_is_shown() {
        for (text, most) in [
            ("0", MaxFail::Hosts(0)),
            ("12", MaxFail::Hosts(12)),
            ("0%", MaxFail::Percent(0)),
            ("100%", MaxFail::Percent(100)),
        ] {
            assert_eq!(text.parse(), Ok(most));
            assert_eq!(most.to_string(), text);
        }
        for text in [
            "",
            "%",
            "-1",
            "+1",
            "1.5%",
            "101%",
            "300%",
            "all",
            "4294967296",
        ] {
            assert!(text.parse::<MaxFail>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn more_than_the_limit_is_too_many() {
        let most = MaxFail::Hosts(2);
        assert!(!most.is_exceeded_by(2, 3) && most.is_exceeded_by(3, 3));
        let most = MaxFail::Percent(30);
        assert!(!most.is_exceeded_by(3, 10) && most.is_exceeded_by(4, 10));
        let most = MaxFail::Percent(0);
        assert!(!most.is_exceeded_by(0, 10) && most.is_exceeded_by(1, 10));
        assert!(!MaxFail::Percent(100).is_exceeded_by(10, 10));
    }
}
