//! The steps of a container's life, against played programs and against real LXC.

mod links;
mod played;
mod real;
mod running;
