//! A log that was just begun, which every run goes on from: to begin one takes as long as most of what a run does.

use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tallybook::log::{Log, Open};
use tokio::runtime::Runtime;

use crate::stage::place;

/// A directory or a file of it, in an order in which they can be made.
struct Part {
    path: PathBuf,
    mode: u32,
    /// The length, and what is in it up to the zeros at its end; none for a directory.
    file: Option<(u64, Vec<u8>)>,
}

static BEGUN: OnceLock<Vec<Part>> = OnceLock::new();

/// Puts a log there that has its first event and nothing else.
pub(crate) fn put(runtime: &Runtime, store: &Path) {
    for part in BEGUN.get_or_init(|| begin(runtime)) {
        let path = store.join(&part.path);
        let Some((len, bytes)) = &part.file else {
            DirBuilder::new().mode(part.mode).create(&path).unwrap();
            continue;
        };
        let file = File::create(&path).unwrap();
        file.set_permissions(Permissions::from_mode(part.mode))
            .unwrap();
        // What is behind is a hole: it reads as zeros, and takes no room.
        file.write_all_at(bytes, 0).unwrap();
        file.set_len(*len).unwrap();
    }
}

fn begin(runtime: &Runtime) -> Vec<Part> {
    let place = place();
    let store = place.path().join("store");
    runtime.block_on(async {
        let log = Log::open(&store, Open::Create, |_| {}).await.unwrap();
        assert!(log.is_holder().await);
        log.close().await;
    });
    let mut parts = Vec::new();
    read(&store, Path::new(""), &mut parts);
    parts
}

fn read(store: &Path, path: &Path, parts: &mut Vec<Part>) {
    let there = store.join(path);
    let meta = fs::symlink_metadata(&there).unwrap();
    let mode = meta.permissions().mode() & 0o7777;
    if meta.is_file() {
        let mut bytes = fs::read(&there).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0);
        bytes.truncate(used.map_or(0, |last| last + 1));
        parts.push(Part {
            path: path.to_owned(),
            mode,
            file: Some((meta.len(), bytes)),
        });
    }
    if meta.is_dir() {
        parts.push(Part {
            path: path.to_owned(),
            mode,
            file: None,
        });
        for entry in fs::read_dir(&there).unwrap() {
            read(store, &path.join(entry.unwrap().file_name()), parts);
        }
    }
}
