//! The damage matrix of what carries the log: segments, the payloads in them, archived segments, and the file `head`.

use std::ops::Range;
use std::path::{Path, PathBuf};

use tallybook::log::{HEAD, JOURNAL};
use tallybook_events::ids::Seq;
use tallybook_events::record::{self, Record};
use tallybook_events::segment;
use tallybook_testkit::story::Story;
use tempfile::TempDir;

use crate::action::{self, Action, Others, PLACES, Place, TO_BYTES, TO_FILES, TO_PARTS};
use crate::ground::{self, Judged, copy_tree, frames};
use crate::table::{Outcome, Table};

const SEGMENT_LEN: u64 = 24_000;

/// A store that was used, and the same of a branch of its log and of another log.
struct Ground {
    store: TempDir,
    branch: TempDir,
    other_log: TempDir,
    records: Vec<Record>,
    branched: Vec<Record>,
    others: Vec<Record>,
}

impl Ground {
    fn new() -> Self {
        let begun = Story::new(23);
        let told = |choices: u64| {
            let mut story = begun.clone();
            while story.records.len() < 340 {
                story = story.branch(choices, 1);
            }
            story.records
        };
        // Each append a write of its own, so that segments end.
        let alone = |records: Vec<Record>| {
            let mut write = Seq(1);
            let mut writes = Vec::new();
            for record in &records {
                writes.push(write);
                if record.header.more == 0 {
                    write = record.header.seq.next();
                }
            }
            ground::resealed(&records, 0, |number, header| header.write = writes[number])
        };
        let records = Story::of(23, 300).records;
        let branched = alone(told(77));
        let others = ground::of_another_log(&records);
        let used = |records: &[Record]| {
            let store = ground::journal_of(records, SEGMENT_LEN);
            ground::use_it(store.path());
            store
        };
        Ground {
            store: used(&records),
            branch: used(&branched),
            other_log: used(&others),
            records,
            branched,
            others,
        }
    }

    fn copy(&self, is_known: bool) -> TempDir {
        let copy = ground::scratch();
        if is_known {
            copy_tree(self.store.path(), copy.path());
        } else {
            // Nothing remembers how far the log went.
            copy_tree(&self.store.path().join(JOURNAL), &copy.path().join(JOURNAL));
        }
        copy
    }

    /// The record of a position in another telling.
    fn foreign(&self, action: Action, seq: Seq) -> Vec<u8> {
        let number = seq.0 as usize - 1;
        let record = match action {
            Action::FromBranch => self.branched[number].clone(),
            Action::FromOtherLog => self.others[number].clone(),
            Action::OtherEpoch => {
                let mut header = self.records[number].header.clone();
                header.epoch.0 += 1;
                let of = &self.records[number];
                Record::seal(header, of.salt, of.payload.clone()).unwrap()
            }
            other => unreachable!("{other:?} brings no record"),
        };
        let mut bytes = Vec::new();
        record.write_frame(&mut bytes);
        bytes
    }

    /// Does something to a segment's bytes.
    fn apply(&self, action: Action, place: Place, first: Seq, bytes: &mut Vec<u8>) {
        let parts = frames(bytes);
        let number = place.among(parts.len());
        match action {
            Action::Double => action::double(bytes, parts[number].clone()),
            Action::Swap => action::swap(bytes, &parts, number),
            Action::FromBranch | Action::FromOtherLog | Action::OtherEpoch => {
                // The first events of a branch are those of the log.
                let number = match (first, number) {
                    (Seq(1), 0) => 2,
                    (_, number) => number,
                };
                let foreign = self.foreign(action, Seq(first.0 + number as u64));
                drop(bytes.splice(parts[number].clone(), foreign));
            }
            other => {
                let all = 0..bytes.len();
                action::to_bytes(other, place, bytes, all);
            }
        }
    }
}

/// Where a log was damaged.
#[derive(Debug, Clone, Copy)]
struct Damaged {
    /// The first event whose bytes are not what they were,
    event: Seq,
    /// and the one with which its append begins: without it, the log ends before that.
    append: Seq,
}

impl Damaged {
    /// Where an event that is an append of its own was.
    const fn at(event: Seq) -> Self {
        Damaged {
            event,
            append: event,
        }
    }

    /// Whether something that is said of an event can be about this.
    fn is_near(self, seq: Seq) -> bool {
        self.append.0 <= seq.0 + 1 && seq.0 <= self.event.0 + 1
    }
}

/// The first event whose bytes are not what they were.
fn first_changed(first: Seq, before: &[u8], after: &[u8]) -> Damaged {
    let same = before
        .iter()
        .zip(after)
        .take_while(|(one, other)| one == other);
    let at = same.count();
    let frames = frames(before);
    let whole = frames.iter().take_while(|frame| frame.end <= at).count();
    let goes_on = |frame: &&Range<usize>| {
        Record::read_frame(&before[(*frame).clone()])
            .is_ok_and(|(record, _)| record.header.more > 0)
    };
    let begun = frames[..whole].iter().rev().take_while(goes_on).count();
    Damaged {
        event: Seq(first.0 + whole as u64),
        append: Seq(first.0 + (whole - begun) as u64),
    }
}

/// What is known of a damaged place: that it is named there, or told as torn where that is allowed: behind the log's
/// end, and in its last write where nothing remembers that it was acknowledged.
fn outcome(
    judged: Result<Judged, &'static str>,
    at: Damaged,
    file: &Path,
    may_be_torn: bool,
) -> Outcome {
    let judged = match judged {
        Ok(judged) => judged,
        Err(how) => return Outcome::Failed(how.to_owned()),
    };
    // A segment that is nowhere is named as where it has to be: in the journal, not in the archive.
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    let name = name.trim_end_matches(".zst").to_owned();
    if let Some(refused) = judged.refused {
        return match refused.contains(&name) {
            true => Outcome::Named(format!(
                "refused: {}",
                refused.replace(&*file.to_string_lossy(), &name)
            )),
            false => Outcome::Failed(refused),
        };
    }
    let named = judged
        .findings
        .iter()
        .find(|finding| at.is_near(finding.seq));
    match (named, judged.findings.first()) {
        (Some(finding), _) => Outcome::Named(format!(
            "{} {:?}: {}",
            finding.seq, finding.class, finding.what
        )),
        (None, Some(finding)) => {
            Outcome::Failed(format!("{at:?} is damaged, named is {finding:?}"))
        }
        (None, None) if may_be_torn && judged.torn_bytes > 0 => match judged.head.0.next()
            == at.append
        {
            true => Outcome::Torn,
            false => Outcome::Failed(format!("{at:?} is damaged, torn behind {}", judged.head.0)),
        },
        (None, None) => Outcome::Failed(format!("nothing is named: {judged:?}")),
    }
}

/// Why nothing is to be named of a segment, where nothing is.
fn segment_excuse(
    action: Action,
    place: Place,
    which: Place,
    is_known: bool,
) -> Option<&'static str> {
    let last = which == Place::Tail && !is_known;
    match (action, place) {
        (Action::Delete, _) if last => {
            Some("a cut at an append's border: only what is kept elsewhere knows of it")
        }
        _ => None,
    }
}

fn segment_cells(ground: &Ground, is_known: bool, which: Place) -> Table {
    let mut table = Table::default();
    let segments = ground::segments(ground.store.path());
    let first = segments[which.among(segments.len())];
    let another = segments[(which.among(segments.len()) + 1) % segments.len()];
    let last = *segments.last().unwrap();
    let end = Seq(ground.records.len() as u64);
    let base = std::fs::read(ground::segment_file(ground.store.path(), first)).unwrap();
    let mut cell = |action: Action, place: Place, run: &dyn Fn(&Path) -> Damaged| {
        let copy = ground.copy(is_known);
        let at = run(copy.path());
        let file = ground::segment_file(copy.path(), first);
        let excuse = segment_excuse(action, place, which, is_known);
        let found = outcome(
            ground::judge_guarded(copy.path()),
            at,
            &file,
            first == last && (!is_known || at.event == end.next()),
        );
        let found = match (excuse, found) {
            (Some(why), Outcome::Failed(how)) if how.starts_with("nothing is named") => {
                Outcome::Nothing(why)
            }
            (Some(_), found) => Outcome::Failed(format!("excused, and yet {found:?}")),
            (None, found) => found,
        };
        let known = if is_known { "segment" } else { "segment alone" };
        table.put(format!("{known} {which}, {action:?} {place}"), found);
    };
    for action in TO_BYTES
        .into_iter()
        .chain(TO_PARTS)
        .chain([Action::OtherEpoch])
    {
        for place in PLACES {
            cell(action, place, &|store| {
                let mut bytes = base.clone();
                ground.apply(action, place, first, &mut bytes);
                assert_ne!(bytes, base, "{action:?} {place}");
                std::fs::write(ground::segment_file(store, first), &bytes).unwrap();
                first_changed(first, &base, &bytes)
            });
        }
    }
    for action in TO_FILES {
        cell(action, Place::Head, &|store| {
            let others = Others {
                another: &ground::segment_file(store, another),
                branch: &same_segment(ground.branch.path(), first, which),
                other_log: &same_segment(ground.other_log.path(), first, which),
            };
            action::to_file(action, &ground::segment_file(store, first), &others);
            Damaged::at(match (action, first) {
                // It is sound by itself: where the next one begins shows that it is another.
                (Action::BranchFile | Action::OtherLogFile, Seq(1)) => segments[1],
                (Action::SwapFiles, _) => first.min(another),
                _ => first,
            })
        });
    }
    table
}

/// The segment of another store that is in the same place.
fn same_segment(store: &Path, first: Seq, which: Place) -> PathBuf {
    let segments = ground::segments(store);
    let same = segments.contains(&first).then_some(first);
    ground::segment_file(store, same.unwrap_or(segments[which.among(segments.len())]))
}

#[test]
fn segments() {
    let ground = Ground::new();
    let mut table = Table::default();
    for is_known in [true, false] {
        for which in PLACES {
            table.take(segment_cells(&ground, is_known, which));
        }
    }
    table.finish((284, 15, 1));
}

/// Where salt and payload of the first, a middle and the last event with output are.
fn outputs(bytes: &[u8]) -> Vec<(Seq, Range<usize>)> {
    let of = |frame: Range<usize>| {
        let (record, _) = Record::read_frame(&bytes[frame.clone()]).ok()?;
        let end = frame.end - record::TRAILER_LEN;
        let start = end - record.payload.len() - record::SALT_LEN;
        record
            .header
            .erasable
            .then_some((record.header.seq, start..end))
    };
    frames(bytes).into_iter().filter_map(of).collect()
}

/// Salts and payloads of what programs printed: no hash of the chain covers them, only the header's commitment.
#[test]
fn outputs_of_programs() {
    let mut table = Table::default();
    let ground = Ground::new();
    let segments = ground::segments(ground.store.path());
    for which in PLACES {
        let with_output = |first: &&Seq| {
            let bytes = std::fs::read(ground::segment_file(ground.store.path(), **first)).unwrap();
            !outputs(&bytes).is_empty()
        };
        let all: Vec<&Seq> = segments.iter().filter(with_output).collect();
        let first = *all[which.among(all.len())];
        let base = std::fs::read(ground::segment_file(ground.store.path(), first)).unwrap();
        let (seq, stretch) = outputs(&base)[0].clone();
        let mut cell = |name: String, bytes: &[u8]| {
            assert_ne!(bytes, base, "{name}");
            let copy = ground.copy(true);
            let file = ground::segment_file(copy.path(), first);
            std::fs::write(&file, bytes).unwrap();
            let found = outcome(
                ground::judge_guarded(copy.path()),
                Damaged::at(seq),
                &file,
                false,
            );
            table.put(format!("output {which}, {name}"), found);
        };
        for action in TO_BYTES {
            for place in PLACES {
                let mut bytes = base.clone();
                action::to_bytes(action, place, &mut bytes, stretch.clone());
                cell(format!("{action:?} {place}"), &bytes);
            }
        }
        let mut erased = base.clone();
        erased[stretch.clone()].fill(0);
        cell("erased".to_owned(), &erased);
        let mut other = base.clone();
        other[stretch.start + record::SALT_LEN..stretch.end].reverse();
        cell("another text of that length".to_owned(), &other);
    }
    table.finish((87, 0, 0));
}

/// A segment in the archive. Its events are in nothing else.
#[test]
fn archived_segments() {
    let mut table = Table::default();
    let ground = Ground::new();
    let segments = ground::segments(ground.store.path());
    let (first, another) = (segments[1], segments[2]);
    for store in [&ground.store, &ground.branch, &ground.other_log] {
        for archived in &ground::segments(store.path())[1..3] {
            ground::archive_segment(store.path(), *archived);
        }
    }
    let in_place = |store: &Path| ground::archive_file(store, ground::segments(store)[1]);
    assert_eq!(ground::judge(ground.store.path(), 2).findings, vec![]);
    let base = std::fs::read(ground::archive_file(ground.store.path(), first)).unwrap();
    let mut cell = |name: String, run: &dyn Fn(&Path)| {
        let copy = ground.copy(true);
        copy_archive(ground.store.path(), copy.path());
        run(copy.path());
        let file = ground::archive_file(copy.path(), first);
        let judged = ground::judge_guarded(copy.path());
        table.put(
            format!("archive, {name}"),
            outcome(judged, Damaged::at(first), &file, false),
        );
    };
    for action in TO_BYTES.into_iter().chain([Action::Double, Action::Swap]) {
        for place in PLACES {
            cell(format!("{action:?} {place}"), &|store| {
                let mut bytes = base.clone();
                let third = bytes.len() / 3;
                let parts = [0..third, third..2 * third, 2 * third..bytes.len()];
                match action {
                    Action::Double => action::double(&mut bytes, parts[place.among(3)].clone()),
                    Action::Swap => action::swap(&mut bytes, &parts, place.among(3)),
                    other => {
                        let all = 0..bytes.len();
                        action::to_bytes(other, place, &mut bytes, all);
                    }
                }
                assert_ne!(bytes, base, "{action:?} {place}");
                std::fs::write(ground::archive_file(store, first), bytes).unwrap();
            });
        }
    }
    for action in TO_FILES {
        cell(format!("{action:?}"), &|store| {
            let others = Others {
                another: &ground::archive_file(store, another),
                branch: &in_place(ground.branch.path()),
                other_log: &in_place(ground.other_log.path()),
            };
            action::to_file(action, &ground::archive_file(store, first), &others);
        });
    }
    table.finish((41, 0, 0));
}

fn copy_archive(from: &Path, to: &Path) {
    copy_tree(&from.join("archive"), &to.join("archive"));
}

/// Why nothing is to be named of the file `head`, where nothing is.
fn head_excuse(action: Action) -> Option<&'static str> {
    match action {
        Action::Delete => {
            Some("a store that an earlier program wrote has none, and the databases say the same")
        }
        Action::LinkNowhere => {
            Some("as if it were not there: it is written again, where the link leads")
        }
        _ => None,
    }
}

/// The file `head` is what tells a lost end from none: whatever else it says than it did is named.
#[test]
fn the_file_head() {
    let mut table = Table::default();
    let ground = Ground::new();
    let base = std::fs::read(ground.store.path().join(HEAD)).unwrap();
    let end = Seq(ground.records.len() as u64);
    let mut cell = |action: Action, name: String, run: &dyn Fn(&Path)| {
        let copy = ground.copy(true);
        run(copy.path());
        let file = copy.path().join(HEAD);
        let at = if action == Action::SwapFiles {
            Seq(1)
        } else {
            end
        };
        let found = outcome(
            ground::judge_guarded(copy.path()),
            Damaged::at(at),
            &file,
            false,
        );
        let found = match (head_excuse(action), found) {
            (Some(why), Outcome::Failed(how)) if how.starts_with("nothing is named") => {
                Outcome::Nothing(why)
            }
            (Some(_), found) => Outcome::Failed(format!("excused, and yet {found:?}")),
            (None, found) => found,
        };
        table.put(format!("head, {name}"), found);
    };
    for action in TO_BYTES.into_iter().chain([Action::Double, Action::Swap]) {
        for place in PLACES {
            cell(action, format!("{action:?} {place}"), &|store| {
                let mut bytes = base.clone();
                let words = [0..37, 37..58, 58..123, 123..bytes.len()];
                match action {
                    Action::Double => action::double(&mut bytes, words[place.among(4)].clone()),
                    Action::Swap => action::swap(&mut bytes, &words, place.among(4)),
                    other => {
                        let all = 0..bytes.len();
                        action::to_bytes(other, place, &mut bytes, all);
                    }
                }
                assert_ne!(bytes, base, "{action:?} {place}");
                std::fs::write(store.join(HEAD), bytes).unwrap();
            });
        }
    }
    for action in TO_FILES {
        cell(action, format!("{action:?}"), &|store| {
            let others = Others {
                another: &ground::segment_file(store, Seq(1)),
                branch: &ground.branch.path().join(HEAD),
                other_log: &ground.other_log.path().join(HEAD),
            };
            action::to_file(action, &store.join(HEAD), &others);
        });
    }
    table.finish((39, 0, 2));
}

/// A segment that was cut within its head is not a segment that is about to be filled.
#[test]
fn no_head_of_a_segment_may_be_cut() {
    let ground = Ground::new();
    let last = *ground::segments(ground.store.path()).last().unwrap();
    let copy = ground.copy(false);
    let file = ground::segment_file(copy.path(), last);
    let bytes = std::fs::read(&file).unwrap();
    for len in 0..segment::LEN {
        std::fs::write(&file, &bytes[..len]).unwrap();
        let judged = ground::judge(copy.path(), 1);
        assert_eq!(
            judged.findings.first().map(|one| one.seq),
            Some(last),
            "{len} bytes"
        );
    }
}
