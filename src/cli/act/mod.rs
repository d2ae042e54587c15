//! What all acting commands share: plan, show or make durable, carry out, and say how it ended.
//!
//! Nothing acts before its operation is in the log; a failure leaves either nothing or something that `op` lists.

mod aftermath;
mod check;
mod dry_run;
mod ending;
mod fleet;
mod hand;
mod operate;
mod resume;
mod rollback;
mod rollback_to;
mod secrets;
mod serve;
mod stop;

pub(super) use check::check;
pub(super) use ending::told;
pub(super) use fleet::{fleet, settings, target};
pub(super) use hand::{follow, kept};
pub(super) use operate::{ActOptions, Needs, PaceOptions, Wish, operate};
pub(super) use resume::{adopt, resume};
pub(super) use rollback::rollback;
pub(super) use rollback_to::{Wanted, rollback_to};
pub(super) use secrets::{declared, declared_by};
pub(super) use serve::work;
pub(super) use stop::engine;
