//! The way to hosts, against an SSH server inside this process (`fake`) and against OpenSSH's own (`real`).

mod fake;
mod lines;
mod real;
mod refusals;
mod world;
