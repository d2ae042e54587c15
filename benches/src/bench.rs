//! `tallybook-bench`: measures the log beside what else could hold it, in the same run. `README.md` says what each figure is.

mod append;
mod choices;
mod commands;
mod fleet;
mod make;
mod measure;
mod read;
mod sqlite;
mod story;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// As in the program itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What went wrong, for whoever runs a bench.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Measures tallybook's log beside what else could hold it
#[derive(Debug, Parser)]
struct Args {
    /// Where the stores are; the file system that is measured
    #[arg(long, global = true, default_value = "target/bench-stores")]
    dir: PathBuf,
    /// How often each side of a pair is measured
    #[arg(long, global = true, default_value_t = 5)]
    rounds: usize,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a store's journal of at least so many events
    Make {
        /// The store
        store: PathBuf,
        /// How many events
        events: u64,
        /// What decides how the story goes
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Durable appends: alone, 64 at once, 64 in one
    Append {
        /// Appends of each measurement that are made alone
        #[arg(long, default_value_t = 2000)]
        alone: usize,
        /// Appends of each of the 64 tasks
        #[arg(long, default_value_t = 100)]
        each: usize,
    },
    /// What the commands need: the store's databases, and SQLite's beside it
    Prepare {
        /// The store, made by `make`
        store: PathBuf,
    },
    /// The table of what was kept in a file of results
    Table {
        /// The file
        results: PathBuf,
    },
    /// Rebuild of the databases of a store, beside SQLite's load of the same events
    Rebuild {
        /// The store, made by `make`
        store: PathBuf,
    },
    /// Verification, beside hashing the same bytes
    Verify {
        /// The store
        store: PathBuf,
    },
    /// The fold of the whole journal
    Replay {
        /// The store
        store: PathBuf,
    },
    /// Steps on many hosts, beside Ansible
    Fleet(fleet::Args),
    /// Our side of it
    #[command(hide = true)]
    FleetOurs {
        /// Where the hosts are
        directory: PathBuf,
        /// The port of each
        ports: Vec<u16>,
    },
    /// Commands that read, as whole processes
    Commands {
        /// The store
        store: PathBuf,
        /// The program
        #[arg(long)]
        program: PathBuf,
    },
}

fn run() -> Result<(), Failure> {
    let args = Args::parse();
    std::fs::create_dir_all(&args.dir)?;
    // As in the program itself; programs that are compared with it keep what they have.
    if !matches!(args.what, What::Fleet(_) | What::Commands { .. }) {
        tallybook::huge_pages::turn_off();
    }
    match args.what {
        What::Make {
            store,
            events,
            seed,
        } => {
            let facts = make::make(&store, events, seed)?;
            println!("{}", serde_json::to_string_pretty(&facts)?);
            Ok(())
        }
        What::Append { alone, each } => append::run(&args.dir, args.rounds, alone, each),
        What::Prepare { store } => read::prepare(&store),
        What::Table { results } => {
            print!("{}", measure::table(&std::fs::read_to_string(results)?)?);
            Ok(())
        }
        What::Rebuild { store } => read::rebuild(&store, args.rounds),
        What::Verify { store } => read::verify(&store, args.rounds),
        What::Replay { store } => read::replay(&store, args.rounds),
        What::Fleet(fleet) => fleet::run(&args.dir, args.rounds, &fleet),
        What::FleetOurs { directory, ports } => fleet::carry_out(&directory, &ports),
        What::Commands { store, program } => commands::run(&store, &program, args.rounds),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tallybook-bench: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}
