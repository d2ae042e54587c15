//! Doors for the fuzz targets: the edits that the scrub makes in files of a guest. Nothing else may use them.

use super::{Source, network, replace_word, secrets};

/// `/etc/hosts` without the source.
pub fn hosts(text: &[u8], source: &Source) -> Vec<u8> {
    network::without_source(text, source)
}

/// Whether a network configuration is bound to one machine.
pub fn is_fixed(text: &[u8], source: &Source) -> bool {
    network::is_fixed(text, source)
}

/// A `shadow` file with every password locked.
pub fn locked(text: &[u8]) -> Vec<u8> {
    secrets::locked(text, |_| true)
}

/// A text with a word replaced.
pub fn replaced(text: &[u8], word: &[u8], with: &[u8]) -> Vec<u8> {
    replace_word(text, word, with)
}
