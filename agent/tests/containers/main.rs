//! The steps of a container's life, against played programs; the lab has the real ones.

mod links;
mod others;
mod played;
mod provision;
mod running;
