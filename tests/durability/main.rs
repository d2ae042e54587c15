//! What a loss of power leaves of the three journals: the log's, the receipts' and the transfers'; and of segments on their way
//! to the archive and back.
//!
//! The real code runs under strace, in a test of its own that does nothing otherwise. From what it called follows what
//! a disk may hold at each point; each such state is made, and the real recovery is let loose on it. Then the same
//! without each single sync: what the model does not see missing, it does not see at all. Needs root and strace.

mod archive;
mod calls;
mod disk;
mod forgetting;
mod journal;
mod judge;
mod ops;
mod receipts;
mod transfer;
