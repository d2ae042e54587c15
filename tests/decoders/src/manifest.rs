//! Manifests of trees: there is one encoding of each, and what is accepted stays below its root.

use tallybook_agent::transfer;
use tallybook_agent::tree::manifest::{Kind, Manifest, Node, differences, id_of};

use crate::memory::bounded;
use crate::{chosen, part};

/// A manifest, and ranges of its pieces.
pub fn run(bytes: &[u8]) {
    let Some((which, mut bytes)) = chosen(bytes) else {
        return;
    };
    let named = match which % 2 {
        0 => &[][..],
        _ => part(&mut bytes),
    };
    let Ok(manifest) = bounded(bytes.len(), || Manifest::decode(bytes)) else {
        return;
    };
    assert_eq!(manifest.encode(), bytes, "a manifest has one form");
    assert_eq!(manifest.id(), id_of(bytes));
    assert!(differences(&manifest, &manifest).is_empty());
    let mut count = 0;
    for entry in manifest.entries() {
        let path = entry.path.as_bytes();
        let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let is_root = path.is_empty();
        let leaves = parts.iter().any(|part| matches!(*part, b"" | b"." | b".."));
        assert!(is_root || !leaves, "{:?} leaves its root", entry.path);
        assert_eq!(manifest.find(&entry.path), Some(entry));
        if let Node::Inode(inode) = &entry.node
            && let Kind::File(content) = &inode.kind
        {
            count += content.pieces().count();
            assert!(content.pieces().all(|piece| piece.len > 0));
        }
    }
    assert_eq!(manifest.content_len() == 0, count == 0);
    let pairs = named.chunks_exact(4);
    let ranges = pairs.map(|pair| {
        (
            u32::from(pair[0]),
            u32::from_le_bytes([pair[1], pair[2], pair[3], 0]),
        )
    });
    let ranges: Vec<(u32, u32)> = ranges.collect();
    let Some((pieces, numbers)) = transfer::fuzzing::numbers(&manifest, &ranges) else {
        return;
    };
    assert!(pieces as usize <= count);
    if let Some(numbers) = numbers {
        let sum =
            |ranges: &[(u32, u32)]| ranges.iter().map(|range| u64::from(range.1)).sum::<u64>();
        assert_eq!(
            sum(&numbers),
            sum(&ranges),
            "what is named is what is meant"
        );
        assert!(sum(&numbers) <= u64::from(pieces));
    }
}
