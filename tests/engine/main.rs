//! Operations carried out on hosts in this process: the real agent, a real log, and lines that are cut on purpose.

mod abandon;
mod deed;
mod doubt;
mod drift;
mod ends;
mod fence;
mod hosts;
mod pace;
mod rollback;
mod rollback_to;
mod runners;
mod sessions;
mod spans;
mod stage;
mod transfers;
mod world;
