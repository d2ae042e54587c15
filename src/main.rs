//! The command `tallybook`.

fn main() {}
