//! The agent's program.

use std::process::ExitCode;

fn main() -> ExitCode {
    tallybook_agent::process::main(tallybook_agent::steps::TABLE)
}
