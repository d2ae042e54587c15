//! Output kept within a bound: its beginning and its end, and how much was dropped between.

/// What is recorded of a session's output: its beginning, and as much of its end.
pub const SESSION_HALF: usize = 64 * 1024;

/// The first and the last bytes of a stream.
#[derive(Debug)]
pub struct Capture {
    head: Vec<u8>,
    head_max: usize,
    tail: std::collections::VecDeque<u8>,
    tail_max: usize,
    dropped: u64,
}

impl Capture {
    /// Nothing yet.
    pub fn new(head_max: usize, tail_max: usize) -> Self {
        Capture {
            head: Vec::new(),
            head_max,
            tail: std::collections::VecDeque::new(),
            tail_max,
            dropped: 0,
        }
    }

    /// More of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        let room = self.head_max - self.head.len();
        let (head, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(head);
        let skipped = rest.len().saturating_sub(self.tail_max);
        let rest = &rest[skipped..];
        let over = (self.tail.len() + rest.len()).saturating_sub(self.tail_max);
        self.tail.drain(..over);
        self.tail.extend(rest);
        self.dropped += (skipped + over) as u64;
    }

    /// How many bytes were dropped from the middle.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// What was kept; a line between the two parts says how much is missing.
    pub fn into_bytes(self) -> Vec<u8> {
        let mut bytes = self.head;
        if self.dropped > 0 {
            let line = dropped_line(self.dropped);
            bytes.extend_from_slice(line.as_bytes());
        }
        bytes.extend(self.tail);
        bytes
    }
}

/// What stands in the place of bytes that were dropped.
pub fn dropped_line(dropped: u64) -> String {
    format!("\n[{dropped} bytes dropped]\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_both_ends_however_it_comes() {
        let all: Vec<u8> = (0..100).collect();
        for piece in [1, 3, 7, 100] {
            let mut capture = Capture::new(10, 5);
            all.chunks(piece).for_each(|bytes| capture.push(bytes));
            assert_eq!(capture.dropped(), 85);
            let mut expected = all[..10].to_vec();
            expected.extend_from_slice(b"\n[85 bytes dropped]\n");
            expected.extend_from_slice(&all[95..]);
            assert_eq!(capture.into_bytes(), expected);
        }
        let mut short = Capture::new(10, 5);
        short.push(&all[..15]);
        assert_eq!(short.dropped(), 0);
        assert_eq!(short.into_bytes(), &all[..15]);
    }
}
