//! Records the hash of the agent that this tallybook is built for, so that another one beside it is refused.
//!
//! `scripts/build.sh` builds the agent first and names it in `TALLYBOOK_AGENT`. Without that nothing is recorded: a
//! build for tests has no agent beside it.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=TALLYBOOK_AGENT");
    let Some(agent) = std::env::var_os("TALLYBOOK_AGENT").map(PathBuf::from) else {
        return;
    };
    println!("cargo::rerun-if-changed={}", agent.display());
    match std::fs::read(&agent) {
        Ok(bytes) => {
            let hash = blake3::hash(&bytes).to_hex();
            println!("cargo::rustc-env=TALLYBOOK_AGENT_BLAKE3={hash}");
        }
        Err(error) => {
            let agent = agent.display();
            println!("cargo::error=TALLYBOOK_AGENT names {agent}, which can't be read: {error}");
        }
    }
}
