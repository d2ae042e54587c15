//! The manifest: its bytes, its id, and what it refuses to decode.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;

fn path(text: &str) -> TreePath {
    TreePath::new(text).unwrap()
}

fn inode(mode: u16, kind: Kind) -> Inode {
    Inode {
        mode,
        uid: 0,
        gid: 0,
        mtime_s: 0,
        mtime_ns: 0,
        xattrs: BTreeMap::new(),
        kind,
    }
}

fn entry(at: &str, node: Inode) -> Entry {
    Entry {
        path: path(at),
        node: Node::Inode(node),
    }
}

fn link(at: &str, first: &str) -> Entry {
    Entry {
        path: path(at),
        node: Node::Link { first: path(first) },
    }
}

fn file(size: u64, extents: Option<Vec<Extent>>, pieces: usize) -> Kind {
    Kind::File(Content {
        size,
        extents,
        pieces: (0..pieces).map(|n| Hash([n as u8 + 1; 32])).collect(),
    })
}

fn root() -> Entry {
    entry("", inode(0o755, Kind::Directory))
}

/// One of every type, with every field set.
fn everything() -> Vec<Entry> {
    let mut full = inode(0o4755, file(PIECE_LEN + 1, None, 2));
    full.uid = 100_000;
    full.gid = 0x0102_0304;
    full.mtime_s = -2;
    full.mtime_ns = 999_999_999;
    full.xattrs
        .insert(b"security.capability".to_vec(), vec![1, 0, 2]);
    full.xattrs.insert(b"user.empty".to_vec(), Vec::new());
    let extent = |offset, len| Extent { offset, len };
    let sparse = Some(vec![extent(0, 4096), extent(3 * PIECE_LEN, 5)]);
    vec![
        root(),
        entry("a", inode(0o700, Kind::Directory)),
        entry("a-b", inode(0o644, file(0, None, 0))),
        entry("a/full", full),
        link("a/link", "a/full"),
        entry("a/sparse", inode(0o600, file(3 * PIECE_LEN + 5, sparse, 2))),
        entry(
            "block",
            inode(0o660, Kind::BlockDevice { major: 8, minor: 1 }),
        ),
        entry(
            "char",
            inode(0o666, Kind::CharDevice { major: 1, minor: 3 }),
        ),
        entry("fifo", inode(0o644, Kind::Fifo)),
        entry("socket", inode(0o777, Kind::Socket)),
        Entry {
            path: TreePath::new(b"symlink\xff".to_vec()).unwrap(),
            node: Node::Inode(inode(
                0o777,
                Kind::Symlink {
                    target: b"../../etc/passwd".to_vec(),
                },
            )),
        },
    ]
}

#[test]
fn golden_bytes_of_a_small_manifest() {
    let mut small = inode(0o644, file(3, None, 1));
    small.uid = 1000;
    small.gid = 100;
    small.mtime_s = 1_700_000_000;
    small.mtime_ns = 5;
    small.xattrs.insert(b"user.k".to_vec(), b"v".to_vec());
    let manifest = Manifest::new(vec![root(), entry("f", small), link("g", "f")]).unwrap();
    let mut expected: Vec<u8> = Vec::new();
    expected.extend(b"\x89TBTREE\n\x01\x00\x03\x00\x00\x00");
    // The root: no path, a directory, 0755, and nothing else.
    expected.extend(b"\x00\x00\x01\xed\x01");
    expected.extend([0; 4 + 4 + 8 + 4 + 2]);
    expected.extend(b"\x01\x00f\x02\xa4\x01\xe8\x03\x00\x00\x64\x00\x00\x00");
    expected.extend(b"\x00\xf1\x53\x65\x00\x00\x00\x00\x05\x00\x00\x00");
    expected.extend(b"\x01\x00\x06user.k\x01\x00\x00\x00v");
    expected.extend(b"\x03\x00\x00\x00\x00\x00\x00\x00");
    expected.extend([1; 32]);
    expected.extend(b"\x01\x00g\x00\x01\x00f");
    assert_eq!(manifest.encode(), expected);
    assert_eq!(Manifest::decode(&expected).unwrap(), manifest);
    assert_eq!(manifest.content_len(), 3);
}

/// Fixed for ever: a template is found by this.
#[test]
fn golden_id_of_everything() {
    let manifest = Manifest::new(everything()).unwrap();
    assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
    assert_eq!(
        manifest.id().to_string(),
        "bb29d5e67a27e56585e20985197f7fb7a06623a9bc09eb50b620f3882ad8ee48"
    );
    assert_ne!(manifest.id(), Hash::from(blake3::hash(&manifest.encode())));
}

#[test]
fn pieces_leave_holes_out() {
    let manifest = Manifest::new(everything()).unwrap();
    let sparse = manifest.find(&path("a/sparse")).unwrap();
    let content = sparse.content().unwrap();
    let pieces: Vec<_> = content.pieces().map(|p| (p.offset, p.len)).collect();
    assert_eq!(pieces, [(0, PIECE_LEN as u32), (3 * PIECE_LEN, 5)]);
    let first = content.pieces().next().unwrap();
    assert_eq!(content.data_within(&first), [(0, 4096)]);
    assert_eq!(manifest.content_len(), (PIECE_LEN + 1) + (PIECE_LEN + 5));
}

fn refused(entries: Vec<Entry>) -> String {
    let built = Manifest::new(entries.clone()).unwrap_err();
    // The same entries, as a sender without scruples would write them.
    let mut sorted = entries;
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(Manifest::decode(&codec::encode(&sorted)).is_err());
    built.to_string()
}

#[test]
fn entries_that_no_tree_has_are_refused() {
    let dir = || inode(0o755, Kind::Directory);
    let symlink = |target: &str| {
        inode(
            0o777,
            Kind::Symlink {
                target: target.into(),
            },
        )
    };
    assert!(refused(vec![]).contains("root"));
    assert!(refused(vec![entry("a", dir())]).contains("below a directory"));
    assert!(refused(vec![entry("", symlink("/"))]).contains("root is not a directory"));
    assert!(refused(vec![root(), entry("a", dir()), entry("a", dir())]).contains("twice"));
    let through = vec![root(), entry("a", symlink("/etc")), entry("a/b", dir())];
    assert!(refused(through).contains("below a directory"));
    assert!(refused(vec![root(), entry("a/b", dir())]).contains("below a directory"));
    let linked = vec![
        root(),
        entry("a", symlink("/etc")),
        link("b", "a"),
        link("b/c", "a"),
    ];
    assert!(refused(linked).contains("below a directory"));
    assert!(refused(vec![root(), entry("d", dir()), link("e", "d")]).contains("hard link"));
    assert!(refused(vec![root(), link("b", "c")]).contains("hard link"));
    assert!(refused(vec![root(), link("b", "b")]).contains("hard link"));
    let chained = vec![
        root(),
        entry("a", inode(0, Kind::Fifo)),
        link("b", "a"),
        link("c", "b"),
    ];
    assert!(refused(chained).contains("hard link"));
    assert!(refused(vec![root(), entry("s", symlink(""))]).contains("target"));
    let mut late = dir();
    late.mtime_ns = 1_000_000_000;
    assert!(refused(vec![root(), entry("a", late)]).contains("nanoseconds"));
}

#[test]
fn contents_that_no_file_has_are_refused() {
    let extent = |offset, len| Extent { offset, len };
    let with = |kind| refused(vec![root(), entry("a", inode(0, kind))]);
    assert!(with(file(1, None, 0)).contains("hashes"));
    assert!(with(file(1, None, 2)).contains("hashes"));
    assert!(with(file(u64::MAX, None, 0)).contains("larger"));
    for bad in [
        vec![extent(0, 10_000)],
        vec![extent(0, 4096), extent(4096, 4096)],
        vec![extent(8192, 1808), extent(0, 4096)],
        vec![extent(1, 4095)],
        vec![extent(4096, 100)],
        vec![extent(8192, 4096)],
        vec![extent(0, 0)],
        vec![extent(u64::MAX, 2)],
    ] {
        let what = with(file(10_000, Some(bad.clone()), 1));
        assert!(
            what.contains("extents") || what.contains("sparse"),
            "{bad:?}: {what}"
        );
    }
    assert!(with(file(0, Some(vec![]), 0)).contains("sparse"));
}

#[test]
fn paths_that_lead_elsewhere_can_not_be_decoded() {
    for bad in [
        "/etc",
        "..",
        "a/../../b",
        "./a",
        "a/./b",
        "a//b",
        "a/",
        "/",
        "a\0b",
    ] {
        assert!(TreePath::new(bad).is_err(), "{bad:?}");
        let mut bytes = codec::encode(&[root(), entry("a", inode(0o755, Kind::Directory))]);
        let at = 8 + 2 + 4 + (2 + 1 + 2 + 4 + 4 + 8 + 4 + 2);
        assert_eq!(&bytes[at..at + 3], b"\x01\x00a");
        let mut replaced = (bad.len() as u16).to_le_bytes().to_vec();
        replaced.extend(bad.as_bytes());
        bytes.splice(at..at + 3, replaced);
        let error = Manifest::decode(&bytes).unwrap_err();
        assert!(
            matches!(error, Error::Field { entry: 1, .. }),
            "{bad:?}: {error}"
        );
    }
}

#[test]
fn truncated_and_extended_bytes_are_refused() {
    let bytes = Manifest::new(everything()).unwrap().encode();
    for end in 0..bytes.len() {
        assert!(Manifest::decode(&bytes[..end]).is_err(), "{end}");
    }
    let mut longer = bytes;
    longer.push(0);
    assert_eq!(Manifest::decode(&longer), Err(Error::Trailing(1)));
}

fn any_xattrs() -> impl Strategy<Value = BTreeMap<Vec<u8>, Vec<u8>>> {
    btree_map(vec(1u8.., 1..20), vec(any::<u8>(), 0..40), 0..3)
}

fn any_content() -> impl Strategy<Value = Kind> {
    let size = prop_oneof![0..10_000u64, 0..4 * PIECE_LEN];
    (size, any::<bool>(), vec((0..20u64, 1..300u64), 0..4)).prop_map(|(size, sparse, gaps)| {
        let mut extents = Vec::new();
        let mut at = 0;
        for (gap, len) in gaps {
            let offset = at + gap * EXTENT_ALIGN;
            let end = (offset + len * EXTENT_ALIGN).min(size);
            if offset >= end {
                break;
            }
            extents.push(Extent {
                offset,
                len: end - offset,
            });
            at = end + EXTENT_ALIGN;
            if end == size {
                break;
            }
        }
        let whole = size == 0 || extents.iter().any(|extent| extent.len == size);
        let extents = (sparse && !whole).then_some(extents);
        let count = piece_runs(size, extents.as_deref())
            .iter()
            .map(|run| run.1)
            .sum::<u64>();
        file(size, extents, count as usize)
    })
}

fn any_inode() -> impl Strategy<Value = Inode> {
    let kind = prop_oneof![
        3 => Just(Kind::Directory),
        3 => any_content(),
        1 => vec(1u8.., 1..30).prop_map(|target| Kind::Symlink { target }),
        1 => any::<(u32, u32)>().prop_map(|(major, minor)| Kind::CharDevice { major, minor }),
        1 => any::<(u32, u32)>().prop_map(|(major, minor)| Kind::BlockDevice { major, minor }),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::Socket),
    ];
    let owner = (0..u32::MAX, 0..u32::MAX);
    let times = (any::<i64>(), 0..1_000_000_000u32);
    (0..=0o7777u16, owner, times, any_xattrs(), kind).prop_map(
        |(mode, (uid, gid), (mtime_s, mtime_ns), xattrs, kind)| Inode {
            mode: if matches!(kind, Kind::Symlink { .. }) {
                0o777
            } else {
                mode
            },
            uid,
            gid,
            mtime_s,
            mtime_ns,
            xattrs,
            kind,
        },
    )
}

prop_compose! {
    /// Up to a dozen inodes, each below some directory that came before it; some have a second name.
    fn any_manifest()(
        nodes in vec((any_inode(), any::<prop::sample::Index>(), vec(any::<u8>(), 1..12), any::<bool>()), 0..12)
    ) -> Manifest {
        let mut entries = vec![root()];
        let mut directories = vec![Vec::new()];
        let mut seen = std::collections::BTreeSet::new();
        for (inode, parent, name, linked) in nodes {
            let mut at: Vec<u8> = parent.get(&directories).clone();
            if !at.is_empty() {
                at.push(b'/');
            }
            at.extend(&name);
            let Ok(path) = TreePath::new(at.clone()) else { continue };
            if name.contains(&b'/') || !seen.insert(path.clone()) {
                continue;
            }
            let directory = inode.kind == Kind::Directory;
            if directory {
                directories.push(at);
            } else if linked {
                let mut second = path.as_bytes().to_vec();
                second.push(b'~');
                let second = TreePath::new(second).unwrap();
                if seen.insert(second.clone()) {
                    let node = Node::Link { first: path.clone() };
                    entries.push(Entry { path: second, node });
                }
            }
            entries.push(Entry { path, node: Node::Inode(inode) });
        }
        Manifest::new(entries).unwrap()
    }
}

proptest! {
    #[test]
    fn what_is_encoded_decodes_to_the_same(manifest in any_manifest()) {
        prop_assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
    }

    #[test]
    fn changed_bytes_have_one_encoding_or_none(
        manifest in any_manifest(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut bytes = manifest.encode();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(decoded) = Manifest::decode(&bytes) {
            prop_assert_eq!(decoded.encode(), bytes);
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..400)) {
        let mut framed = codec::MAGIC.to_vec();
        framed.extend([1, 0]);
        framed.extend(bytes);
        if let Ok(decoded) = Manifest::decode(&framed) {
            prop_assert_eq!(decoded.encode(), framed);
        }
    }
}

#[test]
fn a_tree_with_too_long_a_manifest_is_refused_while_it_is_read() {
    use std::ops::ControlFlow;
    use std::os::fd::AsFd;

    let temp = tempfile::tempdir().unwrap();
    let root = crate::tree::Root::open(temp.path()).unwrap();
    let build =
        || super::build::build_within(8_000, root.as_fd(), &mut |_| ControlFlow::Continue(()));
    let file = temp.path().join("0");
    std::fs::write(&file, "x").unwrap();
    rustix::fs::setxattr(
        &file,
        c"user.long",
        &[b'x'; 2_000],
        rustix::fs::XattrFlags::CREATE,
    )
    .unwrap();
    for number in 1..50 {
        std::fs::hard_link(&file, temp.path().join(number.to_string())).unwrap();
    }
    let manifest = build().unwrap();
    assert_eq!(manifest.entries().len(), 51);
    assert_eq!(manifest.entries()[1].inode().unwrap().xattrs.len(), 1);
    for number in 50..54 {
        let file = temp.path().join(number.to_string());
        std::fs::write(&file, "x").unwrap();
        rustix::fs::setxattr(
            &file,
            c"user.long",
            &[b'x'; 2_000],
            rustix::fs::XattrFlags::CREATE,
        )
        .unwrap();
    }
    let error = build().unwrap_err();
    let refused =
        matches!(error, super::build::BuildError::Manifest(Error::TooLong(len)) if len > 8_000);
    assert!(refused, "{error:?}");
}
