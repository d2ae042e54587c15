//! Takes secrets out of a stream as it comes, however it is cut into pieces, before a bound can cut one in two.

use super::{KNOWN_WITHIN, Mask};

/// One stream. What may be the beginning of a secret is held back, at most 64 bytes of it; what a secret goes on with is
/// never let go.
#[derive(Debug)]
pub struct Stream<'a> {
    mask: &'a Mask,
    /// What was let go last, as it came, and behind that what is held back.
    held: Vec<u8>,
    /// How much of it was let go.
    gone: usize,
}

impl<'a> Stream<'a> {
    /// The beginning of a stream.
    pub const fn new(mask: &'a Mask) -> Self {
        Stream {
            mask,
            held: Vec::new(),
            gone: 0,
        }
    }

    /// More of the stream came: what can be let go of it.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.mask.is_empty() {
            return bytes.to_vec();
        }
        self.held.extend_from_slice(bytes);
        let until = self.held.len() - self.mask.open_len(&self.held);
        self.let_go(until, false)
    }

    /// The stream ended: what was held back. The beginning of a secret that it ended in is taken out.
    pub fn finish(&mut self) -> Vec<u8> {
        self.let_go(self.held.len(), true)
    }

    fn let_go(&mut self, until: usize, at_end: bool) -> Vec<u8> {
        let mut spans = self.mask.spans(&self.held);
        if at_end {
            spans = self.mask.with_begun(&self.held, spans);
        }
        let until = until.max(self.gone);
        let within = spans.iter().find(|it| it.start < until && it.end > until);
        let until = within.map_or(until, |span| span.end);
        let mut out = Vec::with_capacity(until - self.gone);
        let mut at = self.gone;
        for span in spans.iter().filter(|span| span.start < until) {
            if span.end <= at {
                continue;
            }
            // One that began in what is gone was replaced there.
            if span.start >= self.gone {
                out.extend_from_slice(&self.held[at..span.start]);
                out.extend_from_slice(self.mask.mark(span.secret).as_bytes());
            }
            at = span.end;
        }
        out.extend_from_slice(&self.held[at..until]);
        // What a secret goes on with is known by what came before it.
        let forgotten = until.saturating_sub(KNOWN_WITHIN);
        self.held.drain(..forgotten);
        self.gone = until - forgotten;
        out
    }
}
