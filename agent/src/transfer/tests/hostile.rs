//! A sending end that lies. Its manifest even has the id that the controller expects, as if the controller's own
//! record had been made from it.

use super::*;
use crate::transfer::message::{self, FromReceiver, Pack};
use crate::tree::manifest::{Content, Entry, Extent, Inode, Kind, Node, TreePath, id_of};

/// Serves these manifest bytes, and whatever content it has.
fn lie(bytes: &[u8], content: &[&[u8]]) -> (Hosts, StepFailure) {
    let hosts = Hosts::new();
    fs::create_dir_all(hosts.dir.path().join("outside")).unwrap();
    let (mut sender, mut receiver) = links(straight());
    let expect = id_of(bytes);
    let failure = std::thread::scope(|scope| {
        scope.spawn(move || {
            let link: &mut dyn Link = &mut sender;
            let offer = FromSender::Offer {
                manifest: expect,
                manifest_len: bytes.len() as u64,
            };
            message::send(link, offer).unwrap();
            while let Ok(said) = message::receive(link) {
                match said {
                    FromReceiver::WantManifest => {
                        let part = zstd::bulk::compress(bytes, 1).unwrap();
                        let len = bytes.len() as u32;
                        let part = FromSender::Manifest {
                            len,
                            bytes: Blob(part),
                        };
                        message::send(link, part).unwrap();
                    }
                    FromReceiver::Want { .. } => {
                        for (number, bytes) in content.iter().enumerate() {
                            let pack = Pack {
                                id: blake3::hash(bytes).into(),
                                pieces: vec![(number as u32, 1)],
                                zstd: false,
                                bytes: Blob(bytes.to_vec()),
                            };
                            let _gone = message::send(link, FromSender::Pack(pack));
                        }
                    }
                    FromReceiver::Credit { .. } | FromReceiver::Working => {}
                    FromReceiver::Done | FromReceiver::Failed(_) => return,
                }
            }
        });
        let outcome = forward(&step(expect), &hosts.dest, &mut receiver);
        drop(receiver);
        outcome.unwrap_err()
    });
    assert!(!matches!(probe(&step(expect), &hosts.dest), Seen::Done(_)));
    (hosts, failure)
}

fn inode(kind: Kind) -> Inode {
    let mode = if matches!(kind, Kind::Symlink { .. }) {
        0o777
    } else {
        0o755
    };
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

fn entry(path: &str, kind: Kind) -> Entry {
    Entry {
        path: TreePath::new(path).unwrap(),
        node: Node::Inode(inode(kind)),
    }
}

fn file(size: u64, extents: Option<Vec<Extent>>, content: &[&[u8]]) -> Kind {
    let pieces = content
        .iter()
        .map(|bytes| blake3::hash(bytes).into())
        .collect();
    Kind::File(Content {
        size,
        extents,
        pieces,
    })
}

/// The bytes of a manifest in which the name `AAAA` was replaced by another of any length.
fn renamed(entries: Vec<Entry>, to: &str) -> Vec<u8> {
    let bytes = Manifest::new(entries).unwrap().encode();
    let at = bytes.windows(6).position(|w| w == b"\x04\x00AAAA").unwrap();
    let mut changed = bytes[..at].to_vec();
    changed.extend((to.len() as u16).to_le_bytes());
    changed.extend(to.as_bytes());
    changed.extend(&bytes[at + 6..]);
    changed
}

#[test]
fn paths_that_lead_outside_are_refused_and_nothing_is_made() {
    let evil: &[u8] = b"evil";
    for path in [
        "../outside/x",
        "/tmp/tallybook-evil",
        "a/../../x",
        "./x",
        "a//x",
        "..",
        "",
        "x\0y",
    ] {
        let entries = vec![
            entry("", Kind::Directory),
            entry("AAAA", file(4, None, &[evil])),
        ];
        let (hosts, failure) = lie(&renamed(entries, path), &[evil]);
        assert_eq!(
            failure.class,
            FailureClass::Verification,
            "{path}: {}",
            failure.message
        );
        assert_eq!(fs::read_dir(hosts.received()).unwrap().count(), 0, "{path}");
        assert_eq!(
            fs::read_dir(hosts.dir.path().join("outside"))
                .unwrap()
                .count(),
            0
        );
    }
    assert!(!Path::new("/tmp/tallybook-evil").exists());
}

#[test]
fn a_file_below_a_symlink_or_a_name_twice_is_refused() {
    let evil: &[u8] = b"evil";
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap().as_bytes().to_vec();
    let entries = vec![
        entry("", Kind::Directory),
        entry("AAAA", file(4, None, &[evil])),
        entry("a", Kind::Symlink { target }),
    ];
    // Out of order, too, if it comes before the symlink; so both orders are tried.
    for path in ["a/x", "a", "A"] {
        let mut entries = entries.clone();
        if path == "A" {
            entries.push(entry("A", Kind::Directory));
        }
        let bytes = renamed(entries, path);
        let (_, failure) = lie(&bytes, &[evil]);
        assert_eq!(
            failure.class,
            FailureClass::Verification,
            "{}",
            failure.message
        );
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn a_symlink_that_somebody_puts_in_the_way_is_not_followed() {
    let hosts = Hosts::new();
    fs::create_dir(hosts.rootfs().join("etc")).unwrap();
    fs::write(hosts.rootfs().join("etc/f"), "content").unwrap();
    let expect = hosts.seal();
    let outside = hosts.dir.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::create_dir_all(hosts.received()).unwrap();
    for (there, target) in [("etc", outside.clone()), ("etc/f", outside.join("f"))] {
        if there == "etc/f" {
            fs::create_dir(hosts.received().join("etc")).unwrap();
        }
        std::os::unix::fs::symlink(&target, hosts.received().join(there)).unwrap();
        let failure = hosts.transfer(expect).1.unwrap_err();
        assert!(failure.message.contains(there), "{}", failure.message);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        fs::remove_file(hosts.received().join(there)).unwrap();
    }
    hosts.transfer(expect).1.unwrap();
}

#[test]
fn content_that_is_not_the_manifests_is_never_written() {
    let entries = vec![
        entry("", Kind::Directory),
        entry("a", file(4, None, &[b"good"])),
        entry("b", file(4, None, &[b"fine"])),
    ];
    let bytes = Manifest::new(entries).unwrap().encode();
    for wrong in [&b"evil"[..], b"evil and more", b"", b"goo"] {
        let (hosts, failure) = lie(&bytes, &[wrong, b"fine"]);
        assert_eq!(
            failure.class,
            FailureClass::Verification,
            "{}",
            failure.message
        );
        assert!(!hosts.received().join("a").exists());
    }
}

#[test]
fn holes_where_the_content_is_not_zero_are_refused() {
    let mut bytes = vec![0; 8192];
    bytes[0] = 1;
    bytes[8000] = 1;
    let extents = Some(vec![Extent {
        offset: 0,
        len: 4096,
    }]);
    let entries = vec![
        entry("", Kind::Directory),
        entry("a", file(8192, extents, &[&bytes])),
    ];
    let manifest = Manifest::new(entries).unwrap().encode();
    let (hosts, failure) = lie(&manifest, &[&bytes]);
    assert_eq!(failure.class, FailureClass::Verification);
    assert!(
        failure.message.contains("/a has holes"),
        "{}",
        failure.message
    );
    assert!(!hosts.received().join("a").exists());
}

#[test]
fn sizes_that_no_disk_has_are_refused_before_anything_is_asked_for() {
    // One hash for pieces of two lengths: no tree has that.
    let hash = Hash([5; 32]);
    let of = |size, count| {
        Kind::File(Content {
            size,
            extents: None,
            pieces: vec![hash; count],
        })
    };
    let entries = vec![
        entry("", Kind::Directory),
        entry("a", of(10, 1)),
        entry("b", of(11, 1)),
    ];
    let (_, failure) = lie(&Manifest::new(entries).unwrap().encode(), &[]);
    assert!(
        failure.message.contains("another length"),
        "{}",
        failure.message
    );
    // A million times the same piece: a small transfer for a tree of a terabyte.
    let piece = vec![7; 1024 * 1024];
    let hash = blake3::hash(&piece).into();
    let many = Content {
        size: 1 << 40,
        extents: None,
        pieces: vec![hash; 1 << 20],
    };
    let entries = vec![entry("", Kind::Directory), entry("a", Kind::File(many))];
    let bytes = Manifest::new(entries).unwrap().encode();
    let hosts = Hosts::new();
    let dir = hosts.source.generation(&web(), Generation(1));
    fs::write(dir.join("manifest"), &bytes).unwrap();
    let failure = hosts.transfer(id_of(&bytes)).1.unwrap_err();
    assert_eq!(failure.class, FailureClass::DiskFull, "{}", failure.message);
}

#[test]
fn a_sender_that_talks_nonsense_ends_the_step() {
    for nonsense in [b"\xc1".to_vec(), Vec::new(), vec![0; 100], noise(1, 1000)] {
        let hosts = Hosts::new();
        let (mut sender, mut receiver) = links(straight());
        sender.send_peer(nonsense).unwrap();
        let failure = forward(&step(Hash::ZERO), &hosts.dest, &mut receiver).unwrap_err();
        assert_eq!(failure.class, FailureClass::Peer, "{}", failure.message);
    }
}

#[test]
fn a_receiver_that_asks_for_what_is_not_there_gets_nothing() {
    let hosts = Hosts::new();
    fs::write(hosts.rootfs().join("a"), "content").unwrap();
    hosts.seal();
    for pieces in [
        vec![(1, 1)],
        vec![(0, 2)],
        vec![(u32::MAX, u32::MAX)],
        vec![(0, 1), (0, 1)],
        vec![(0, 0)],
    ] {
        let (mut sender, mut receiver) = links(straight());
        let link: &mut dyn Link = &mut receiver;
        message::send(link, FromReceiver::Credit { packs: u32::MAX }).unwrap();
        message::send(
            link,
            FromReceiver::Want {
                pieces,
                more: false,
            },
        )
        .unwrap();
        let failure = serve(&mut sender, &sent_generation(), &hosts.source).unwrap_err();
        assert_eq!(failure.class, FailureClass::Peer, "{}", failure.message);
    }
}
