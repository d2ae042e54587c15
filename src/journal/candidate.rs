//! What is whole in the files of a journal, and may be gone on with.
//!
//! It takes everything that is of the log, wherever it stands; which of it counts, `recover` decides by the chain.

use tallybook_events::event::{Event, Loss};
use tallybook_events::gap::Gap;
use tallybook_events::header::HeaderView;
use tallybook_events::ids::{Epoch, Hash, LogId, Seq};
use tallybook_events::record::{self, Body, Frame};
use tallybook_events::segment;

use super::{Damage, follow};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A gap that an earlier recovery wrote, and where it begins.
    Gap(Seq),
    /// A record whose payload is another than it was.
    Changed,
    Whole,
}

/// Something whole of this log.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) source: usize,
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) seq: Seq,
    pub(super) hash: Hash,
    /// `None` where it is a gap that does not know.
    pub(super) previous: Option<Hash>,
    pub(super) epoch: Epoch,
    pub(super) more: u16,
    pub(super) begins_write: bool,
    pub(super) subject_previous: (Seq, Hash),
    pub(super) kind: Kind,
    pub(super) is_hidden: bool,
    /// What it says of segments, of what was lost of the log, or of what a host was shown.
    pub(super) says: Option<Box<Event>>,
}

impl Candidate {
    pub(super) fn first(&self) -> Seq {
        match self.kind {
            Kind::Gap(first) => first,
            Kind::Changed | Kind::Whole => self.seq,
        }
    }

    /// The newest epoch that it is of, or that it says a host was shown.
    pub(super) fn newest_epoch(&self) -> Epoch {
        match self.says.as_deref() {
            Some(Event::LogFenced(fenced)) => self.epoch.max(fenced.seen.epoch),
            Some(_) | None => self.epoch,
        }
    }

    /// What a recovery says that it lost.
    pub(super) fn losses(&self) -> &[Loss] {
        match self.says.as_deref() {
            Some(Event::LogRecovered(recovered)) => &recovered.losses,
            Some(_) | None => &[],
        }
    }
}

/// Everything whole of this log in the bytes of a segment.
///
/// # Errors
/// Where a newer program wrote what stands where a record is expected: with the byte.
pub(super) fn collect(
    bytes: &[u8],
    log: LogId,
    source: usize,
    into: &mut Vec<Candidate>,
) -> Result<(), (usize, Damage)> {
    let mut at = 0;
    let mut behind = segment::LEN;
    loop {
        while let Some((gap, len)) = bytes.get(behind..).and_then(Gap::read) {
            into.push(of_gap(&gap, source, behind, behind + len));
            behind += len;
            at = behind;
        }
        if let Some(newer) = bytes.get(behind..).and_then(follow::of_newer) {
            return Err((behind, newer));
        }
        let Some((start, frame, header)) = follow::whole(bytes, at) else {
            add_hidden(bytes, (at, bytes.len()), log, source, into);
            return Ok(());
        };
        add_hidden(bytes, (at, start), log, source, into);
        at = start + frame.len();
        if frame.body(&header) == Body::Changed {
            // It may reach over what follows it: where bytes are missing in it, the hash that it ends with may be the one in
            // the header of the next record.
            add_hidden(bytes, (start + 1, at), log, source, into);
        }
        behind = at;
        if header.log == log && header.seq > Seq::NONE {
            into.push(of_record(&frame, &header, source, start));
        }
    }
}

/// What may be the payload of something damaged: it counts only where the chain names it.
fn add_hidden(
    bytes: &[u8],
    (from, to): (usize, usize),
    log: LogId,
    source: usize,
    into: &mut Vec<Candidate>,
) {
    for start in hidden(bytes, from, to) {
        if let Ok(frame) = Frame::read(bytes.get(start..).unwrap_or_default())
            && let Ok(header) = frame.header()
            && header.log == log
            && header.seq > Seq::NONE
        {
            let mut found = of_record(&frame, &header, source, start);
            found.is_hidden = true;
            into.push(found);
        }
    }
}

/// Where something between two places begins like a record.
fn hidden(bytes: &[u8], from: usize, to: usize) -> impl Iterator<Item = usize> {
    let between = bytes.get(from..to).unwrap_or_default();
    let windows = between.windows(record::MAGIC.len()).enumerate();
    let begins = windows.filter(|(_, window)| *window == record::MAGIC);
    begins.map(move |(at, _)| from + at)
}

fn of_record(frame: &Frame<'_>, header: &HeaderView<'_>, source: usize, start: usize) -> Candidate {
    let body = frame.body(header);
    let is_told = matches!(
        header.kind,
        "segments.archived" | "segments.restored" | "log.recovered" | "log.fenced"
    );
    let decode = || Event::decode(header.kind, header.kind_version, frame.payload).ok();
    let says = (is_told && body == Body::Intact).then(decode).flatten();
    Candidate {
        source,
        start,
        end: start + frame.len(),
        seq: header.seq,
        hash: frame.hash,
        previous: Some(header.previous),
        epoch: header.epoch,
        more: header.more,
        begins_write: header.write == header.seq,
        subject_previous: (header.subject_previous_seq, header.subject_previous),
        kind: match body {
            Body::Changed => Kind::Changed,
            Body::Intact | Body::Erased => Kind::Whole,
        },
        is_hidden: false,
        says: says.map(Box::new),
    }
}

fn of_gap(gap: &Gap, source: usize, start: usize, end: usize) -> Candidate {
    let header = HeaderView::decode(&gap.header).ok();
    Candidate {
        source,
        start,
        end,
        seq: gap.last,
        hash: gap.hash,
        previous: header.map(|header| header.previous),
        epoch: header.map_or(Epoch(1), |header| header.epoch),
        more: 0,
        begins_write: false,
        subject_previous: (Seq::NONE, Hash::ZERO),
        kind: Kind::Gap(gap.first),
        is_hidden: false,
        says: None,
    }
}
