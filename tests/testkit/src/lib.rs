//! What tests share: fixed samples of everything stored, and histories told from a number.

pub mod samples;
pub mod story;
