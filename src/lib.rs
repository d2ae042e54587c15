//! The controller.

pub mod cloud;
