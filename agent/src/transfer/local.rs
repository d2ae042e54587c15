//! Trees that are on this host already, as a source of pieces. They are looked at by their manifests, and never
//! believed: every piece is hashed before it is used. It changes nothing in them.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tallybook_events::ids::{Generation, Hash};
use tallybook_events::name::TemplateName;

use crate::layout::Layout;
use crate::tree::beneath::Root;
use crate::tree::manifest::{self, Entry, Manifest, TreePath};

/// Which trees of this host may be looked at for content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reuse {
    /// All generations of all templates.
    All,
    /// These generations.
    Only(Vec<(TemplateName, Generation)>),
}

/// A generation on this host.
pub(super) struct Source {
    pub(super) root: Root,
    pub(super) manifest: Manifest,
    /// The manifest as it is stored.
    pub(super) bytes: Vec<u8>,
    pub(super) id: Hash,
}

/// The generations that may be looked at and can be read. One that can't be read is no reason to fail: what it
/// could have given comes over the line instead.
pub(super) fn sources(layout: &Layout, reuse: &Reuse) -> Vec<Source> {
    let named: Vec<(TemplateName, Generation)> = match reuse {
        Reuse::All => everything(layout),
        Reuse::Only(named) => named.clone(),
    };
    let open = |(name, generation): &(TemplateName, Generation)| {
        open(&layout.generation(name, *generation))
    };
    named.iter().filter_map(open).collect()
}

/// The newest generations of each template first.
fn everything(layout: &Layout) -> Vec<(TemplateName, Generation)> {
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
        found.extend(numbers.into_iter().map(|n| (name.clone(), Generation(n))));
    }
    found
}

fn open(dir: &Path) -> Option<Source> {
    let beside = Root::open(dir).ok()?;
    let len_max = usize::try_from(manifest::LEN_MAX).unwrap_or(usize::MAX);
    let bytes = beside.read(Path::new("manifest"), len_max).ok()?;
    Some(Source {
        root: beside.subtree(Path::new("rootfs")).ok()?,
        manifest: Manifest::decode(&bytes).ok()?,
        id: manifest::id_of(&bytes),
        bytes,
    })
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
