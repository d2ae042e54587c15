//! `tallybook completions`.

use clap::ValueEnum;
use clap_complete::env::{Bash, Elvish, EnvCompleter, Fish, Powershell, Zsh};

use super::complete::ASKED_BY;
use super::{Context, Error, Exit};
use crate::render::{Output, Unwritten};

/// Write what has a shell complete commands, options and the names of hosts, containers, templates and operations
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tallybook completions bash >/etc/bash_completion.d/tallybook\n  tallybook completions zsh >/usr/local/share/zsh/site-functions/_tallybook"
)]
pub(super) struct Args {
    /// The shell
    shell: Shell,
}

/// A file that zsh loads at the first completion is run as that completion (zshcompsys(1), "Autoloaded files").
const ZSH_AUTOLOADED: &str =
    "if [ \"$funcstack[1]\" = _tallybook ]; then _clap_dynamic_completer_tallybook \"$@\"; fi";

/// A shell.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
}

impl Shell {
    fn completer(self) -> &'static dyn EnvCompleter {
        match self {
            Shell::Bash => &Bash,
            Shell::Elvish => &Elvish,
            Shell::Fish => &Fish,
            Shell::Powershell => &Powershell,
            Shell::Zsh => &Zsh,
        }
    }
}

impl Args {
    pub(super) async fn run(self, _context: &Context, out: &mut Output) -> Result<Exit, Error> {
        const NAME: &str = "tallybook";
        let mut script = Vec::new();
        // By its name, wherever it is installed by then.
        let written = self.shell.completer();
        let written = written.write_registration(ASKED_BY, NAME, NAME, NAME, &mut script);
        written.map_err(Unwritten)?;
        out.line(String::from_utf8_lossy(&script).trim_end())?;
        if matches!(self.shell, Shell::Zsh) {
            out.line(ZSH_AUTOLOADED)?;
        }
        Ok(Exit::Ok)
    }
}
