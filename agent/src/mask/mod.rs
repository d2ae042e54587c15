//! Takes declared secrets out of texts: each place where one stands becomes `[secret NAME]`.
//!
//! It knows each secret in the forms of `forms`. A short form is looked for whole. Of a long one every stretch is found
//! that holds a block of it, and taken out as far as it goes: also where a bound cut it, where it goes on behind a line's
//! end (as base64 is wrapped), or where only a part was printed. It never shows what it looks for.

mod forms;
mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use zeroize::Zeroizing;

use crate::scrub;
use crate::secret::{SecretName, VALUE_LEN_MIN};
pub use stream::Stream;

/// How many bytes of a long form are looked for at once.
const BLOCK: usize = 16;
/// A form of at most so many bytes is looked for whole.
const SHORT: usize = 2 * BLOCK;
/// How many bytes must go on behind a line's end for a secret to go on there.
const WRAPPED_MIN: usize = 4;
/// From here on the beginning of a secret is taken out where a text ends within it.
const FRAGMENT_MIN: usize = VALUE_LEN_MIN;
/// Every stretch of a form is known as such by its first so many bytes.
const KNOWN_WITHIN: usize = 64;

/// One form of one secret.
struct Form {
    /// Which of the names.
    secret: usize,
    bytes: Zeroizing<Vec<u8>>,
}

/// Where a block is in a form.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    form: usize,
    offset: usize,
}

/// A stretch of a text that shows a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: usize,
    end: usize,
    secret: usize,
}

/// What takes secrets out. The default knows none.
#[derive(Default)]
pub struct Mask {
    names: Vec<SecretName>,
    forms: Vec<Form>,
    finder: Option<AhoCorasick>,
    /// By pattern of the finder.
    places: Vec<Vec<Place>>,
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mask of {:?}", self.names)
    }
}

impl Mask {
    /// A mask of these secrets.
    pub fn of<'a>(secrets: impl IntoIterator<Item = (&'a SecretName, &'a [u8])>) -> Self {
        let mut mask = Mask::default();
        let mut blocks: BTreeMap<Vec<u8>, BTreeSet<Place>> = BTreeMap::new();
        for (name, value) in secrets {
            let secret = mask.names.len();
            mask.names.push(name.clone());
            for bytes in forms::of(value) {
                let form = mask.forms.len();
                for offset in block_offsets(bytes.len()) {
                    let len = if bytes.len() <= SHORT {
                        bytes.len()
                    } else {
                        BLOCK
                    };
                    let block = bytes[offset..offset + len].to_vec();
                    blocks
                        .entry(block)
                        .or_default()
                        .insert(Place { form, offset });
                }
                let bytes = Zeroizing::new(bytes);
                mask.forms.push(Form { secret, bytes });
            }
        }
        if blocks.is_empty() {
            return mask;
        }
        mask.finder = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(blocks.keys().map(|block| &block[..]))
            .ok();
        mask.places = blocks
            .into_values()
            .map(|places| places.into_iter().collect())
            .collect();
        mask
    }

    /// Whether it knows no secret.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The first secret that the bytes show.
    pub fn find(&self, bytes: &[u8]) -> Option<&SecretName> {
        let first = self.spans(bytes).first().copied()?;
        self.names.get(first.secret)
    }

    /// The same bytes without the secrets.
    pub fn apply(&self, bytes: &[u8]) -> Vec<u8> {
        self.replace(bytes, &self.spans(bytes))
    }

    /// The same text without the secrets.
    pub fn apply_text(&self, text: &str) -> String {
        String::from_utf8_lossy(&self.apply(text.as_bytes())).into_owned()
    }

    /// Bytes whose middle was dropped by [`crate::capture::Capture`], without the secrets, also those that were cut there.
    pub fn apply_bounded(&self, bytes: &[u8], dropped: u64) -> Vec<u8> {
        let line = crate::capture::dropped_line(dropped);
        let middle = bytes
            .windows(line.len())
            .position(|window| window == line.as_bytes());
        let (Some(middle), true) = (middle, dropped > 0) else {
            return self.apply(bytes);
        };
        let (head, tail) = (&bytes[..middle], &bytes[middle + line.len()..]);
        let mut out = self.replace(head, &self.with_begun(head, self.spans(head)));
        out.extend_from_slice(line.as_bytes());
        out.extend(self.replace(tail, &self.with_ended(tail, self.spans(tail))));
        out
    }

    /// The same text without declared secrets and without what looks like one.
    pub fn clean_text(&self, text: &str) -> String {
        scrub::scrub_text(&self.apply_text(text))
    }

    /// The same bytes without declared secrets and without what looks like one.
    pub fn clean(&self, bytes: &[u8]) -> Vec<u8> {
        scrub::scrub(&self.apply(bytes))
    }

    /// What a secret is replaced by.
    fn mark(&self, secret: usize) -> String {
        let name = self.names.get(secret).map_or("?", SecretName::as_str);
        format!("[secret {name}]")
    }

    fn replace(&self, bytes: &[u8], spans: &[Span]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        let mut at = 0;
        for span in spans {
            out.extend_from_slice(&bytes[at..span.start]);
            out.extend_from_slice(self.mark(span.secret).as_bytes());
            at = span.end;
        }
        out.extend_from_slice(&bytes[at..]);
        out
    }

    /// Every stretch that shows a secret, in order, none touching another of the same secret.
    fn spans(&self, bytes: &[u8]) -> Vec<Span> {
        let Some(finder) = &self.finder else {
            // Secrets that can't be looked for may be anywhere. Within the limits of their lengths there is none such.
            let all = Span {
                start: 0,
                end: bytes.len(),
                secret: 0,
            };
            let some = !self.is_empty() && !bytes.is_empty();
            return some.then_some(all).into_iter().collect();
        };
        let mut found = Vec::new();
        // How far a form was followed: what is found within that is part of it.
        let mut followed = BTreeMap::new();
        for hit in finder.find_overlapping_iter(bytes) {
            let places = self.places.get(hit.pattern().as_usize());
            let is_new =
                |place: &&Place| followed.get(&place.form).is_none_or(|end| hit.end() > *end);
            let places: Vec<Place> = places
                .into_iter()
                .flatten()
                .filter(is_new)
                .copied()
                .collect();
            for place in places {
                let span = self.follow(bytes, hit.range(), place);
                let end = followed.entry(place.form).or_insert(0);
                *end = span.end.max(*end);
                found.push(span);
            }
        }
        merged(found)
    }

    /// How far the form goes on around a block of it.
    fn follow(&self, bytes: &[u8], block: std::ops::Range<usize>, place: Place) -> Span {
        let form = &self.forms[place.form];
        let after = &form.bytes[place.offset + block.len()..];
        let right = run(bytes[block.end..].iter(), after.iter());
        let before = &form.bytes[..place.offset];
        let left = run(bytes[..block.start].iter().rev(), before.iter().rev());
        Span {
            start: block.start - left,
            end: block.end + right,
            secret: form.secret,
        }
    }

    /// How many of the last bytes may be of a secret that goes on behind them.
    fn open_len(&self, bytes: &[u8]) -> usize {
        let last = &bytes[bytes.len().saturating_sub(KNOWN_WITHIN)..];
        let is_end = |byte: u8| matches!(byte, b'\n' | b'\r');
        // As they are, and as if lines did not end in it.
        let (places, joined): (Vec<usize>, Vec<u8>) = last
            .iter()
            .enumerate()
            .filter(|(_, byte)| !is_end(**byte))
            .unzip();
        let over_lines = self.open_suffix(&joined);
        let start = places.get(joined.len() - over_lines);
        let over_lines = start.map_or(0, |start| last.len() - start);
        self.open_suffix(last).max(over_lines)
    }

    fn open_suffix(&self, text: &[u8]) -> usize {
        let of_form = |form: &Form| {
            let most = text.len().min(form.bytes.len() - 1);
            let mut begun = (1..=most).rev();
            let begun = begun.find(|len| text.ends_with(&form.bytes[..*len]));
            begun.unwrap_or(0).max(within(text, &form.bytes))
        };
        self.forms.iter().map(of_form).max().unwrap_or(0)
    }

    /// Also the beginning of a secret that the bytes end in.
    fn with_begun(&self, bytes: &[u8], spans: Vec<Span>) -> Vec<Span> {
        let begun = |form: &Form| {
            let most = form.bytes.len().min(bytes.len()).min(KNOWN_WITHIN);
            let mut lens = (FRAGMENT_MIN..=most).rev();
            lens.find(|len| bytes.ends_with(&form.bytes[..*len]))
        };
        self.with_fragment(spans, begun, |len| (bytes.len() - len, bytes.len()))
    }

    /// Also the end of a secret that the bytes begin with.
    fn with_ended(&self, bytes: &[u8], spans: Vec<Span>) -> Vec<Span> {
        let ended = |form: &Form| {
            let most = form.bytes.len().min(bytes.len()).min(KNOWN_WITHIN);
            let mut lens = (FRAGMENT_MIN..=most).rev();
            lens.find(|len| bytes.starts_with(&form.bytes[form.bytes.len() - len..]))
        };
        self.with_fragment(spans, ended, |len| (0, len))
    }

    fn with_fragment(
        &self,
        mut spans: Vec<Span>,
        len_of: impl Fn(&Form) -> Option<usize>,
        range: impl Fn(usize) -> (usize, usize),
    ) -> Vec<Span> {
        let longest = self
            .forms
            .iter()
            .filter_map(|form| Some((len_of(form)?, form.secret)))
            .max();
        let Some((len, secret)) = longest else {
            return spans;
        };
        let (start, end) = range(len);
        spans.push(Span { start, end, secret });
        merged(spans)
    }
}

/// How many of the last bytes of a text stand somewhere in a long form, if they are enough to matter.
fn within(text: &[u8], form: &[u8]) -> usize {
    let last = &text[text.len().saturating_sub(FRAGMENT_MIN)..];
    if form.len() <= SHORT || last.len() < FRAGMENT_MIN {
        return 0;
    }
    let places = form.windows(FRAGMENT_MIN).enumerate();
    let places = places.filter(|(_, part)| *part == last);
    let len = |(at, _): (usize, &[u8])| {
        let before = form[..at].iter().rev();
        let same = before.zip(text[..text.len() - FRAGMENT_MIN].iter().rev());
        FRAGMENT_MIN + same.take_while(|(one, other)| one == other).count()
    };
    places.map(len).max().unwrap_or(0)
}

/// Where the blocks of a form of this length begin: one after the other, and one at its very end.
fn block_offsets(len: usize) -> BTreeSet<usize> {
    if len <= SHORT {
        return BTreeSet::from([0]);
    }
    let mut offsets: BTreeSet<usize> = (0..=len - BLOCK).step_by(BLOCK).collect();
    offsets.insert(len - BLOCK);
    offsets
}

/// How many bytes of a text, one after the other, are those of a form; a line's end in the text alone does not count,
/// where enough of the form follows.
fn run<'a>(
    mut text: impl Iterator<Item = &'a u8> + Clone,
    mut form: impl Iterator<Item = &'a u8> + Clone,
) -> usize {
    let mut len = 0;
    loop {
        let (mut text_on, mut form_on) = (text.clone(), form.clone());
        match (text_on.next(), form_on.next()) {
            (Some(byte), Some(wanted)) if byte == wanted => {
                (text, form) = (text_on, form_on);
                len += 1;
                continue;
            }
            (Some(b'\n' | b'\r'), Some(_)) => {}
            (Some(_) | None, _) => return len,
        }
        let skipped = text
            .clone()
            .take_while(|byte| matches!(byte, b'\n' | b'\r'));
        let skipped = skipped.take(2).count();
        // A form's own line end, written in two bytes.
        let is_own = |byte: &u8| matches!(byte, b'\n' | b'\r');
        let skipped = match form.clone().next() {
            Some(wanted) if is_own(wanted) => skipped.min(1),
            Some(_) | None => skipped,
        };
        let wanted = form.clone().take(WRAPPED_MIN);
        let goes_on = text.clone().skip(skipped).take(wanted.clone().count());
        if !goes_on.eq(wanted) {
            return len;
        }
        text.nth(skipped - 1);
        len += skipped;
    }
}

/// In order, those of one secret that overlap or touch as one.
fn merged(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_by_key(|span| (span.start, std::cmp::Reverse(span.end)));
    let mut out: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        match out.last_mut() {
            Some(last) if span.start < last.end => last.end = last.end.max(span.end),
            Some(last) if span.start == last.end && span.secret == last.secret => {
                last.end = span.end;
            }
            Some(_) | None => out.push(span),
        }
    }
    out
}

#[cfg(test)]
mod tests;
