//! Standard output: lines, tables and JSON, for whoever reads it.
//!
//! A reader that goes away (`| head`) is not an error: the command goes on in silence and keeps its exit code.

use std::fmt::Display;
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;

use super::color::{Color, Ink};
use super::pager::{Pager, Paper};
use super::table::Table;

/// For whom results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Aligned text for people.
    #[default]
    Table,
    /// One JSON document; `log` writes a document a line.
    Json,
}

/// Standard output can't be written, for example to a full disk.
#[derive(Debug, thiserror::Error)]
#[error("can't write to standard output")]
pub struct Unwritten(#[source] pub io::Error);

/// Whether something was written, or is not wanted any more.
pub type Written = Result<(), Unwritten>;

/// Where results go.
pub struct Output {
    format: Format,
    colored: bool,
    /// Columns of the terminal; `None` when it is none.
    width: Option<usize>,
    stream: Stream,
    /// What shows more than fits on the terminal, where that is wanted.
    pager: Option<Pager>,
    closed: bool,
}

/// What is written to.
enum Stream {
    Stdout(BufWriter<io::Stdout>),
    Paper(Paper),
}

impl Stream {
    fn get(&mut self) -> &mut dyn Write {
        match self {
            Stream::Stdout(stdout) => stdout,
            Stream::Paper(paper) => paper,
        }
    }
}

impl Output {
    /// The process's standard output, and the pager for what is only read there.
    pub fn stdout(format: Format, color: Color, no_color: bool, pager: Option<Pager>) -> Self {
        let stdout = io::stdout();
        let width = stdout
            .is_terminal()
            .then(|| rustix::termios::tcgetwinsize(&stdout).ok())
            .flatten()
            .map(|size| usize::from(size.ws_col))
            .filter(|columns| *columns > 0);
        Output {
            format,
            colored: color.on(&stdout, no_color),
            width,
            pager: pager.filter(|_| stdout.is_terminal() && format == Format::Table),
            stream: Stream::Stdout(BufWriter::new(stdout)),
            closed: false,
        }
    }

    /// What follows is only read: a pager shows it at the end, where one is wanted and there is a terminal.
    pub fn page(&mut self) {
        let Some(pager) = self.pager.take() else {
            return;
        };
        match pager.paper() {
            Ok(paper) => self.stream = Stream::Paper(paper),
            Err(error) => tracing::warn!("all is shown at once: {error}"),
        }
    }

    /// Nothing more is written, and nothing is held that somebody may wait for: hands on what is held back, and waits until
    /// whoever reads it has read it.
    ///
    /// # Errors
    /// When it can't be written, or no pager can be started.
    pub fn finish(self) -> Written {
        match self.stream {
            Stream::Paper(paper) => paper.read().map_err(Unwritten),
            Stream::Stdout(_) => {
                let mut out = self;
                out.flush()
            }
        }
    }

    /// For whom results are written.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Whether nobody reads any more.
    pub const fn is_closed(&self) -> bool {
        self.closed
    }

    /// A line of text; the caller has made it safe to show.
    ///
    /// # Errors
    /// When it can't be written, for example to a full disk.
    pub fn line(&mut self, text: impl Display) -> Written {
        self.write(&format!("{text}\n"))
    }

    /// A line in an ink.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn inked(&mut self, ink: Ink, text: &str) -> Written {
        let text = ink.paint(text, self.colored);
        self.line(text)
    }

    /// A table; nothing when it has no rows.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn table(&mut self, table: &Table) -> Written {
        self.write(&table.render(self.width, self.colored))
    }

    /// A JSON document, indented.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn json<T: Serialize>(&mut self, document: &T) -> Written {
        let text =
            serde_json::to_string_pretty(document).map_err(|error| Unwritten(error.into()))?;
        self.line(text)
    }

    /// A JSON document on a line.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn json_line<T: Serialize>(&mut self, document: &T) -> Written {
        let text = serde_json::to_string(document).map_err(|error| Unwritten(error.into()))?;
        self.line(text)
    }

    /// Hands on what is held back.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn flush(&mut self) -> Written {
        let result = self.stream.get().flush();
        self.settle(result)
    }

    fn write(&mut self, text: &str) -> Written {
        if self.closed {
            return Ok(());
        }
        let result = self.stream.get().write_all(text.as_bytes());
        self.settle(result)
    }

    fn settle(&mut self, result: io::Result<()>) -> Written {
        match result {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            other => other.map_err(Unwritten),
        }
    }
}
