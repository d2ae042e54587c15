//! Operations in a simulation: the real engine, the real log and the real agent, on hosts, lines and a clock that a seed
//! decides.
//!
//! Time passes only when everybody waits, and every wait for a thread or the disk is over before anything else goes on. So the
//! same seed is the same story, event by event. A seed that fails is printed with its story, and can be told again:
//! `SIMULATION_SEED=N cargo nextest run -p tallybook --test simulation given_seeds --run-ignored all --no-capture`.
//!
//! `fault` says what can go wrong, `observer` what must be true in the end.

mod agent;
mod begun;
mod controller;
mod dice;
mod fault;
mod host;
mod line;
mod matrix;
mod observer;
mod operations;
mod seeds;
mod stage;
mod world;

/// The program's; a database that is opened anew also costs less with it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
