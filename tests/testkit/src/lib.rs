//! What tests share: fixed samples of everything stored, histories told from a number, and their files.

pub mod files;
pub mod samples;
pub mod story;
