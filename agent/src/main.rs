//! The agent's process: speaks the protocol on stdin and stdout, and nothing else.

fn main() {}
