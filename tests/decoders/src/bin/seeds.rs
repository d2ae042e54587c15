//! Writes the seeds of every target below a directory: `seeds DIRECTORY` makes `DIRECTORY/TARGET/seed-N`.

use std::path::PathBuf;
use std::process::ExitCode;

use tallybook_decoders::{TARGETS, seeds};

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("seeds DIRECTORY");
        return ExitCode::from(2);
    };
    for (target, _) in TARGETS {
        let own = directory.join(target);
        let written = std::fs::create_dir_all(&own).and_then(|()| {
            let all = seeds::of(target).into_iter().enumerate();
            all.into_iter().try_for_each(|(number, bytes)| {
                std::fs::write(own.join(format!("seed-{number}")), bytes)
            })
        });
        if let Err(error) = written {
            eprintln!("seeds: can't write in {}: {error}", own.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
