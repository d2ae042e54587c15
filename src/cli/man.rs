//! `tallybook man`.

use std::path::PathBuf;

use super::{Context, Error, Exit, command};
use crate::render::{Output, Unwritten};

/// Write the manual: the page of the program itself, or a page for every command into a directory
///
/// `tallybook man | man -l -` shows the first of them. Into a directory such as /usr/local/share/man/man1, `man tallybook-log` finds
/// the others.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook man | man -l -\n  tallybook man --into /usr/local/share/man/man1"
)]
pub(super) struct Args {
    /// Write all pages into this directory; it is made where it is not there
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
}

impl Args {
    pub(super) async fn run(self, _context: &Context, out: &mut Output) -> Result<Exit, Error> {
        match self.into {
            Some(path) => {
                let made = std::fs::create_dir_all(&path);
                let written = made.and_then(|()| clap_mangen::generate_to(command(), &path));
                written.map_err(|source| Error::Write { path, source })?;
            }
            None => {
                let mut page = Vec::new();
                let rendered = clap_mangen::Man::new(command()).render(&mut page);
                rendered.map_err(Unwritten)?;
                out.line(String::from_utf8_lossy(&page).trim_end())?;
            }
        }
        Ok(Exit::Ok)
    }
}
