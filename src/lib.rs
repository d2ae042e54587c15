//! The controller.

pub mod host;
