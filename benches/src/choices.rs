//! Choices: a generator of numbers and texts from a seed. The same seed gives the same, on every machine.

/// A generator of choices: splitmix64.
#[derive(Debug, Clone)]
pub(crate) struct Choices(u64);

impl Choices {
    /// From a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Choices(seed)
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One below this.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Bytes.
    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
        bytes
    }

    /// What a program printed: lines of words, about so many bytes.
    pub(crate) fn text(&mut self, len: usize) -> Vec<u8> {
        const WORDS: &[&str] = &[
            "Get:12",
            "http://deb.debian.org/debian",
            "bookworm/main",
            "amd64",
            "Setting",
            "up",
            "Unpacking",
            "(1.22.1-9)",
            "libc6:amd64",
            "Processing",
            "triggers",
            "for",
            "systemd",
            "created",
            "symlink",
            "/etc/systemd/system/multi-user.target.wants/nginx.service",
            "0",
            "upgraded,",
            "newly",
            "installed,",
        ];
        let mut text = String::with_capacity(len + 64);
        while text.len() < len {
            text.push_str(WORDS[self.below(WORDS.len())]);
            text.push(if self.below(8) == 0 { '\n' } else { ' ' });
        }
        text.into_bytes()
    }
}
