//! Trees of files.

pub mod manifest;
