//! Operations in a simulation: the real engine, the real log and the real agent, on hosts, lines and a clock that a seed
//! decides.
//!
//! Time passes only when everybody waits. The same seed is the same story, event by event: a seed that fails is printed,
//! and `SIMULATION_SEED=N cargo nextest run -p tallybook --test simulation one_seed --run-ignored all` tells it again.

mod agent;
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
