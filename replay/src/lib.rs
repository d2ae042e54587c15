//! What the events say: the state of the cloud, where operations stand, what to resume and what to undo.
//!
//! Pure: depends on the events alone and never acts. The same events give the same answer on every machine,
//! whole or one at a time.

pub mod entry;
pub mod fleet;
pub mod folding;
pub mod operation;
pub mod pace;
pub mod resume;
pub mod since;
pub mod state;
pub mod undo;
