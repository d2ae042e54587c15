//! Carrying out what `recover` decided: segments are put in the place of damaged ones.
//!
//! The originals are kept aside before anything takes their place, so that it can be done again from every moment at
//! which it may stop. Nothing that was in the journal is ever gone.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tallybook_events::gap::Gap;
use tallybook_events::ids::Seq;
use tallybook_events::record::Frame;

use super::recover::{Output, Part, Plan, Source, UNFINISHED};
use super::write::sync_directory;
use super::{Error, archive, io_error, segment_path};

/// What one file of a journal becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The file.
    pub path: PathBuf,
    /// Where it is kept.
    pub kept: PathBuf,
    /// Whether another takes its place under this name.
    pub is_replaced: bool,
}

/// What there is to do on the disk.
#[derive(Debug)]
pub struct Work {
    /// Where originals are kept.
    pub directory: PathBuf,
    /// The files that are kept there, in order.
    pub moves: Vec<Move>,
    /// The segments that are written.
    write: Vec<usize>,
}

/// Called before each step on the disk, with a word for it.
pub type Step<'a> = &'a mut dyn FnMut(&'static str) -> io::Result<()>;

impl Plan {
    /// Finds out which files have to change.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn work(&self) -> Result<Work, Error> {
        let store = self.journal.parent().unwrap_or(Path::new("."));
        let directory = match &self.kept {
            Some(directory) => directory.clone(),
            None => store.join(format!("damaged-{}", self.epoch.0 + 1)),
        };
        let mut write = Vec::new();
        let mut sound: BTreeSet<Seq> = BTreeSet::new();
        let mut reader = Sources::of(self);
        for (number, output) in self.outputs.iter().enumerate() {
            let first = output.head.first;
            let is_last = number + 1 == self.outputs.len();
            let own = self
                .sources
                .iter()
                .position(|source| source.first == Some(first));
            let is_same = match own {
                None => false,
                Some(own) => {
                    let wanted = reader.assemble(output)?;
                    let is_sound = self.sources.get(own).is_some_and(|own| !own.is_damaged);
                    is_sound && is_same(reader.bytes(own)?, &wanted, is_last)
                }
            };
            match is_same {
                true => drop(sound.insert(first)),
                false => write.push(number),
            }
        }
        let written = write.iter().filter_map(|number| self.outputs.get(*number));
        let written: BTreeSet<PathBuf> = written
            .map(|output| segment_path(&self.journal, output.head.first))
            .collect();
        let of_journal = self.sources.iter().filter_map(|source| {
            let first = source.first.filter(|first| !sound.contains(first))?;
            // Where both are there, neither may come to light again.
            Some([
                segment_path(&self.journal, first),
                archive::path(&self.journal, first),
            ])
        });
        let moves = of_journal.flatten().filter(|path| path.exists());
        let moves = moves.map(|path| Move {
            kept: directory.join(path.file_name().unwrap_or_default()),
            is_replaced: written.contains(&path),
            path,
        });
        Ok(Work {
            moves: moves.collect(),
            directory,
            write,
        })
    }

    /// Carries it out. `step` may stop it at any moment; then it can be planned and carried out again.
    ///
    /// # Errors
    /// When the files can't be read or written, or `step` says so.
    pub fn carry_out(&self, work: &Work, step: Step<'_>) -> Result<(), Error> {
        let directory = &work.directory;
        let mut at = |word| step(word).map_err(io_error(word, &self.journal));
        if work.moves.is_empty() && work.write.is_empty() {
            return self.finish(directory, &mut at);
        }
        at("marking")?;
        mark(directory).map_err(io_error("making", directory))?;
        if let Some(store) = directory.parent() {
            sync_directory(store)?;
        }
        for moved in &work.moves {
            at("keeping")?;
            keep(moved).map_err(io_error("keeping", &moved.path))?;
        }
        // Crash boundary: every original is kept before one is replaced.
        sync_directory(directory)?;
        let mut reader = Sources::of(self);
        let mut written = Vec::new();
        for output in work
            .write
            .iter()
            .filter_map(|number| self.outputs.get(*number))
        {
            at("writing")?;
            let path = segment_path(&self.journal, output.head.first);
            let new = path.with_extension("new");
            let bytes = reader.assemble(output)?;
            write_whole(&new, &bytes).map_err(io_error("writing", &new))?;
            written.push((new, path));
        }
        for (new, path) in &written {
            at("replacing")?;
            std::fs::rename(new, path).map_err(io_error("replacing", path))?;
        }
        sync_directory(&self.journal)?;
        // Crash boundary: what takes their place is durable.
        for moved in work.moves.iter().filter(|moved| !moved.is_replaced) {
            at("removing")?;
            std::fs::remove_file(&moved.path).map_err(io_error("removing", &moved.path))?;
        }
        sync_directory(&self.journal)?;
        let archive = archive::directory(&self.journal);
        if archive.is_dir() {
            sync_directory(&archive)?;
        }
        self.finish(directory, &mut at)
    }

    fn finish(
        &self,
        directory: &Path,
        at: &mut dyn FnMut(&'static str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let marker = directory.join(UNFINISHED);
        if !marker.exists() {
            return Ok(());
        }
        at("unmarking")?;
        std::fs::remove_file(&marker).map_err(io_error("removing", &marker))?;
        sync_directory(directory)
    }
}

/// Whether a segment is as it is to be. Only the last may have room.
fn is_same(found: &[u8], wanted: &[u8], is_last: bool) -> bool {
    let behind = found.strip_prefix(wanted);
    behind.is_some_and(|rest| rest.is_empty() || (is_last && rest.iter().all(|byte| *byte == 0)))
}

fn mark(directory: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let marker = directory.join(UNFINISHED);
    write_whole(&marker, b"")?;
    File::open(directory)?.sync_all()
}

/// Keeps an original. What was kept before is the older one, and stays.
fn keep(moved: &Move) -> io::Result<()> {
    if moved.kept.exists() {
        return Ok(());
    }
    if std::fs::hard_link(&moved.path, &moved.kept).is_ok() {
        return Ok(());
    }
    // The archive may be on another disk. Under its name only once it is whole.
    let new = moved.kept.with_extension("new");
    write_whole(&new, &std::fs::read(&moved.path)?)?;
    std::fs::rename(&new, &moved.kept)
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The sources of a plan, the one at hand in memory.
struct Sources<'a> {
    plan: &'a Plan,
    open: Option<(usize, Vec<u8>)>,
}

impl<'a> Sources<'a> {
    fn of(plan: &'a Plan) -> Self {
        Sources { plan, open: None }
    }

    fn bytes(&mut self, number: usize) -> Result<&[u8], Error> {
        let bytes = match self.open.take() {
            Some((open, bytes)) if open == number => bytes,
            Some(_) | None => {
                let source: Option<&Source> = self.plan.sources.get(number);
                let loaded = source.map(|source| source.load(&self.plan.journal));
                loaded
                    .transpose()?
                    .map(|loaded| loaded.bytes)
                    .unwrap_or_default()
            }
        };
        Ok(&self.open.insert((number, bytes)).1)
    }

    fn assemble(&mut self, output: &Output) -> Result<Vec<u8>, Error> {
        let mut out = output.head.encode().to_vec();
        for part in &output.parts {
            match part {
                Part::Copy { source, start, end } => {
                    let bytes = self.bytes(*source)?;
                    out.extend_from_slice(bytes.get(*start..*end).unwrap_or_default());
                }
                Part::Header { source, start, end } => {
                    let bytes = self.bytes(*source)?;
                    let frame = Frame::read(bytes.get(*start..*end).unwrap_or_default());
                    let gap = frame.ok().and_then(|frame| {
                        let seq = frame.header().ok()?.seq;
                        Some(Gap {
                            first: seq,
                            last: seq,
                            hash: frame.hash,
                            header: frame.header_bytes.to_vec(),
                        })
                    });
                    out.extend(gap.map(|gap| gap.encode()).unwrap_or_default());
                }
                Part::Gap(gap) => out.extend(gap.encode()),
            }
        }
        Ok(out)
    }
}
