//! Trees that are on this host already, as a source of pieces. They are looked at by their manifests, and never
//! believed: every piece is hashed before it is used. It changes nothing in them.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use tallybook_events::ids::{Generation, Hash};
use tallybook_events::name::TemplateName;

use crate::layout::Layout;
use crate::tree::beneath::Root;
use crate::tree::manifest::{self, Entry, Manifest, TreePath};

/// How many generations are looked into at once: each takes descriptors, and its manifest in memory.
const SOURCES_MAX: usize = 16;
/// How long their manifests may be together.
const MANIFESTS_LEN_MAX: u64 = 64 << 20;

/// A generation on this host.
pub(super) struct Source {
    pub(super) root: Root,
    pub(super) manifest: Manifest,
}

/// The manifest with this id and length, if a generation of this host has it.
pub(super) fn manifest(layout: &Layout, id: Hash, len: u64) -> Option<Vec<u8>> {
    everything(layout).iter().find_map(|dir| {
        let bytes = read_manifest(dir, len)?;
        (bytes.len() as u64 == len && manifest::id_of(&bytes) == id).then_some(bytes)
    })
}

/// The generations that have some of the pieces that are wanted, newest first, until all were found or the budget
/// is spent. One that can't be read is no reason to fail: what it could have given comes over the line instead.
pub(super) fn sources(layout: &Layout, wanted: HashSet<Hash>) -> Vec<Source> {
    sources_within(layout, wanted, SOURCES_MAX, MANIFESTS_LEN_MAX)
}

fn sources_within(
    layout: &Layout,
    mut wanted: HashSet<Hash>,
    count_max: usize,
    mut len_max: u64,
) -> Vec<Source> {
    let mut sources = Vec::new();
    for dir in everything(layout) {
        if wanted.is_empty() || sources.len() >= count_max {
            break;
        }
        let Some((source, len)) = open(&dir, len_max) else {
            continue;
        };
        let before = wanted.len();
        for content in source.manifest.entries().iter().filter_map(Entry::content) {
            for hash in &content.pieces {
                wanted.remove(hash);
            }
        }
        if wanted.len() < before {
            len_max -= len;
            sources.push(source);
        }
    }
    sources
}

/// All generations: the newest of each template, then the newest but one of each, and so on.
fn everything(layout: &Layout) -> Vec<PathBuf> {
    let names_in = |path: &Path| Root::open(path).and_then(|root| root.list(Path::new("")));
    let mut found = Vec::new();
    for name in names_in(&layout.own().join("templates")).unwrap_or_default() {
        let Some(name) = name
            .to_str()
            .and_then(|name| name.parse::<TemplateName>().ok())
        else {
            continue;
        };
        let generations = names_in(&layout.template(&name)).unwrap_or_default();
        let mut numbers: Vec<u32> = generations
            .iter()
            .filter_map(|text| text.to_str()?.parse().ok())
            .collect();
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        let dirs = numbers
            .into_iter()
            .map(|number| layout.generation(&name, Generation(number)));
        found.extend(dirs.enumerate());
    }
    found.sort();
    found.into_iter().map(|(_, dir)| dir).collect()
}

fn read_manifest(dir: &Path, len_max: u64) -> Option<Vec<u8>> {
    let len_max = usize::try_from(len_max.min(manifest::LEN_MAX)).unwrap_or(usize::MAX);
    let beside = Root::open(dir).ok()?;
    let path = Path::new("manifest");
    // Asked first: a longer one is not read only to be thrown away.
    if beside.stat(path).ok()?.size > len_max as u64 {
        return None;
    }
    beside.read(path, len_max).ok()
}

fn open(dir: &Path, len_max: u64) -> Option<(Source, u64)> {
    let bytes = read_manifest(dir, len_max)?;
    let source = Source {
        root: Root::open(dir).ok()?.subtree(Path::new("rootfs")).ok()?,
        manifest: Manifest::decode(&bytes).ok()?,
    };
    Some((source, bytes.len() as u64))
}

/// Where to find a piece on this host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot<'a> {
    pub(super) source: usize,
    pub(super) path: &'a TreePath,
    pub(super) offset: u64,
}

/// Where the pieces are that the sources have.
pub(super) fn spots(sources: &[Source]) -> HashMap<Hash, Spot<'_>> {
    let mut spots = HashMap::new();
    for (at, source) in sources.iter().enumerate() {
        for entry in source.manifest.entries() {
            for piece in entry.content().into_iter().flat_map(|c| c.pieces()) {
                spots.entry(piece.hash).or_insert(Spot {
                    source: at,
                    path: &entry.path,
                    offset: piece.offset,
                });
            }
        }
    }
    spots
}

/// The first source that has the same content under the same path, by its manifest.
pub(super) fn same_file<'a>(sources: &'a [Source], entry: &Entry) -> Option<&'a Source> {
    let content = entry.content()?;
    sources.iter().find(|source| {
        let there = source.manifest.find(&entry.path);
        there.and_then(Entry::content) == Some(content)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::ops::ControlFlow;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn no_more_is_opened_than_helps_and_the_newest_first() {
        let temp = tempfile::tempdir().unwrap();
        let layout = Layout::below(temp.path());
        let mut len = 0;
        let hash = |text: &str| Hash::from(blake3::hash(text.as_bytes()));
        for (name, generation, content) in
            [("a", 1, "x"), ("a", 2, "y"), ("b", 7, "x"), ("b", 6, "z")]
        {
            let dir = layout.generation(&name.parse().unwrap(), Generation(generation));
            fs::create_dir_all(dir.join("rootfs")).unwrap();
            fs::write(dir.join("rootfs/f"), content).unwrap();
            let root = Root::open(&dir.join("rootfs")).unwrap();
            let manifest =
                manifest::build(root.as_fd(), &mut |_| ControlFlow::Continue(())).unwrap();
            fs::write(dir.join("manifest"), manifest.encode()).unwrap();
            len = manifest.encode().len() as u64;
            assert_eq!(
                super::manifest(&layout, manifest.id(), len),
                Some(manifest.encode())
            );
            assert_eq!(super::manifest(&layout, manifest.id(), len + 1), None);
        }
        let opened = |wanted: &[&str], count_max, len_max| {
            let wanted = wanted.iter().map(|text| hash(text)).collect();
            let sources = sources_within(&layout, wanted, count_max, len_max);
            let names = sources.iter().map(|source| {
                let dir = source.root.label().parent().unwrap();
                dir.strip_prefix(layout.own().join("templates"))
                    .unwrap()
                    .display()
                    .to_string()
            });
            names.collect::<Vec<_>>()
        };
        assert_eq!(
            opened(&["x"], 9, 10 * len),
            ["b/7"],
            "not a/1, which is older"
        );
        assert_eq!(opened(&["x", "y", "z"], 9, 10 * len), ["a/2", "b/7", "b/6"]);
        assert_eq!(opened(&["x", "y", "z"], 2, 10 * len), ["a/2", "b/7"]);
        assert_eq!(opened(&["x", "y", "z"], 9, 2 * len), ["a/2", "b/7"]);
        assert_eq!(opened(&["x"], 9, len - 1), Vec::<String>::new());
        assert_eq!(opened(&[], 9, 10 * len), Vec::<String>::new());
    }
}
