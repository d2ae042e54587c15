//! Damage and tampering on what is stored: whatever is done to a store's files, `verify` names it, and nothing panics,
//! hangs or makes it worse. Where there is nothing to name, the reason is written down here.

mod action;
mod copies;
mod ground;
mod journal_cells;
mod store_cells;
mod table;
mod tamper;
mod unreadable;
mod versions;
