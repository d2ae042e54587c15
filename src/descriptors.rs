//! How many files this process may have open at once: raised where what it is about to do needs more.
//!
//! It never lowers a limit, and never raises one further than who started the process allows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is kept free besides: a segment and a database being opened, a client, a key being read.
const SPARE: u64 = 64;

/// That no more files may be open than this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this process may have {most} files open and may come to need {needed}: hosts may fail to be reached for want of them; \
     allow it more (`ulimit -n`, LimitNOFILE)"
)]
pub struct TooFew {
    /// How many may be open.
    pub most: u64,
    /// How many may come to be.
    pub needed: u64,
}

/// Makes sure that so many may be opened besides those that are.
///
/// # Errors
/// When they may not.
pub fn make_room(for_these: usize) -> Result<(), TooFew> {
    // Where that can't be read, nothing is said of it.
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let needed = (open + for_these) as u64 + SPARE;
    match decide(getrlimit(Resource::Nofile), needed) {
        Decision::Enough => Ok(()),
        Decision::Raise(limit) => setrlimit(Resource::Nofile, limit).map_err(|_refused| TooFew {
            most: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            needed,
        }),
        Decision::RaiseAndStill(limit, most) => {
            // What it gains is little, and what is said stays true without it.
            let _refused = setrlimit(Resource::Nofile, limit);
            Err(TooFew { most, needed })
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Enough,
    Raise(Rlimit),
    /// Raised, it is this, and too few.
    RaiseAndStill(Rlimit, u64),
}

fn decide(limit: Rlimit, needed: u64) -> Decision {
    let allows = |most: Option<u64>| most.is_none_or(|most| most >= needed);
    let raised = || Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match limit.maximum {
        _ if allows(limit.current) => Decision::Enough,
        Some(most) if most < needed => Decision::RaiseAndStill(raised(), most),
        Some(_) | None => Decision::Raise(raised()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(current: u64, maximum: u64) -> Rlimit {
        Rlimit {
            current: Some(current),
            maximum: Some(maximum),
        }
    }

    #[test]
    fn a_limit_is_raised_only_where_it_has_to_be_and_only_as_far_as_may_be() {
        assert_eq!(decide(limit(100, 200), 100), Decision::Enough);
        let raised = Decision::Raise(limit(200, 200));
        assert_eq!(decide(limit(100, 200), 200), raised);
        let still = Decision::RaiseAndStill(limit(200, 200), 200);
        assert_eq!(decide(limit(100, 200), 201), still);
        let none = Rlimit {
            current: None,
            maximum: None,
        };
        assert_eq!(decide(none, u64::MAX), Decision::Enough);
        let open = Rlimit {
            current: Some(100),
            maximum: None,
        };
        assert_eq!(decide(open, 200), Decision::Raise(none));
    }
}
