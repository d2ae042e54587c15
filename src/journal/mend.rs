//! Carrying out what `recover` decided: segments are put in the place of damaged ones.
//!
//! The originals are kept aside before anything takes their place, so that it can be done again from every moment at
//! which it may stop. Nothing that was in the journal is ever gone.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use tallybook_events::gap::Gap;
use tallybook_events::ids::{Epoch, Seq};
use tallybook_events::record::Frame;

use super::keep::{self, write_whole};
use super::recover::{Output, Part, Plan};
use super::source::{In, Source, UNFINISHED};
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
            None => store.join(format!("damaged-{}", self.next_epoch().0)),
        };
        let mut write = Vec::new();
        let mut stay: BTreeSet<usize> = BTreeSet::new();
        let mut reader = Reader::of(self);
        for (number, output) in self.outputs.iter().enumerate() {
            let is_last = number + 1 == self.outputs.len();
            let wanted = reader.assemble(output)?;
            let mut same = BTreeSet::new();
            for (file, source) in self.files_of(output.head.first) {
                if !source.is_damaged && is_same(reader.bytes(file)?, &wanted, is_last) {
                    same.insert(file);
                }
            }
            // Of two files of a segment the journal's own counts, which is the later one.
            let counts = self.files_of(output.head.first).last();
            match counts.is_some_and(|(file, _)| same.contains(&file)) {
                true => stay.extend(self.files_of(output.head.first).map(|(file, _)| file)),
                false => {
                    write.push(number);
                    stay.extend(same);
                }
            }
        }
        let written = write.iter().filter_map(|number| self.outputs.get(*number));
        let written: BTreeSet<PathBuf> = written
            .map(|output| segment_path(&self.journal, output.head.first))
            .collect();
        // What is not as it is to be may not come to light again.
        let files = self.sources.iter().enumerate();
        let moves =
            files.filter(|(file, source)| source.is_in != In::Aside && !stay.contains(file));
        let moves = moves.map(|(_, source)| {
            let path = source.path.clone();
            let kept = keep::place(&path, names(&directory, &path));
            Ok(Move {
                kept: kept.map_err(io_error("reading", &path))?,
                is_replaced: written.contains(&path),
                path,
            })
        });
        Ok(Work {
            moves: moves.collect::<Result<_, Error>>()?,
            directory,
            write,
        })
    }

    /// The epoch that the log goes on in.
    pub const fn next_epoch(&self) -> Epoch {
        Epoch(self.epoch.0.saturating_add(1))
    }

    /// The files of a segment, that in the journal last.
    fn files_of(&self, first: Seq) -> impl Iterator<Item = (usize, &Source)> {
        let files = self.sources.iter().enumerate();
        files.filter(move |(_, source)| source.first == first && source.is_in != In::Aside)
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
        self.mark(directory)
            .map_err(io_error("making", directory))?;
        if let Some(store) = directory.parent() {
            sync_directory(store)?;
        }
        for moved in &work.moves {
            at("keeping")?;
            keep::keep(&moved.path, &moved.kept).map_err(io_error("keeping", &moved.path))?;
        }
        // Crash boundary: every original is kept before one is replaced.
        sync_directory(directory)?;
        let mut reader = Reader::of(self);
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

    /// Makes the directory of the originals. One that is there was made for this recovery, or is not touched.
    fn mark(&self, directory: &Path) -> io::Result<()> {
        if self.kept.is_none() {
            std::fs::DirBuilder::new().mode(0o700).create(directory)?;
        }
        write_whole(&directory.join(UNFINISHED), b"")?;
        File::open(directory)?.sync_all()
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

/// What an original may be kept as: where something else was kept by its name, that stays too.
fn names(directory: &Path, path: &Path) -> impl Iterator<Item = PathBuf> {
    let name = path.file_name().unwrap_or_default();
    let (stem, end) = name
        .to_str()
        .and_then(|name| name.split_once('.'))
        .unwrap_or_default();
    let others = (1_u32..).map(move |number| directory.join(format!("{stem}.{number}.{end}")));
    std::iter::once(directory.join(name)).chain(others)
}

/// Reads the files of a plan. What the journal and the archive have of a segment is in memory at once.
struct Reader<'a> {
    plan: &'a Plan,
    open: VecDeque<(usize, Vec<u8>)>,
}

/// How many files are in memory.
const OPEN_MAX: usize = 2;

impl<'a> Reader<'a> {
    fn of(plan: &'a Plan) -> Self {
        let open = VecDeque::new();
        Reader { plan, open }
    }

    fn bytes(&mut self, number: usize) -> Result<&[u8], Error> {
        let is_it = |(open, _): &(usize, Vec<u8>)| *open == number;
        if !self.open.iter().any(is_it) {
            let source: Option<&Source> = self.plan.sources.get(number);
            let loaded = source.map(|source| source.load(&self.plan.journal));
            let bytes = loaded.transpose()?.map(|loaded| loaded.bytes);
            self.open.truncate(OPEN_MAX - 1);
            self.open.push_front((number, bytes.unwrap_or_default()));
        }
        let open = self.open.iter().find(|open| is_it(open));
        Ok(open.map(|(_, bytes)| bytes.as_slice()).unwrap_or_default())
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
