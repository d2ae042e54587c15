//! What system calls did to the files beneath a directory: which inode was written where, which name was given or
//! taken, what was synced. A call that touches them and is not known here is an error, never passed over.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::calls::{Call, bytes, descriptor};

/// A file, directory or other thing, in the order in which they came into being. The directory itself is 0.
pub(crate) type Ino = usize;

/// What an inode is when it comes into being.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink(Vec<u8>),
    Special,
}

/// A change that a loss of power may undo until it was synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Write { at: u64, bytes: Vec<u8> },
    SetLen(u64),
    Put { name: Vec<u8>, ino: Ino },
    Remove { name: Vec<u8> },
    Rename { from: Vec<u8>, to: Vec<u8> },
}

/// What a call did.
#[derive(Debug, Clone)]
pub(crate) enum What {
    Made(Kind),
    Changed(Ino, Change),
    /// Of one inode, or of all of the file system.
    Synced {
        of: Option<Ino>,
        failed: bool,
    },
    /// What memory had of a file was dropped: what is read from here on is what the disk has.
    Dropped(Ino),
    /// The driver said a line.
    Said(String),
}

/// What a call did, and which it was.
#[derive(Debug, Clone)]
pub(crate) struct Op {
    pub(crate) begun: usize,
    pub(crate) ended: usize,
    /// For people: the call and the path, from the directory on.
    pub(crate) call: String,
    /// For strace to let it fail: the call's name, and which call of that name it was in its thread.
    pub(crate) thread: String,
    pub(crate) name: String,
    pub(crate) number: usize,
    pub(crate) injected: bool,
    pub(crate) what: What,
}

/// An open file description.
#[derive(Debug, Clone, Copy)]
struct Open {
    ino: Ino,
    at: u64,
    append: bool,
}

enum Node {
    File(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Ino>),
    Other,
}

struct Watch<'a> {
    root: &'a Path,
    nodes: Vec<Node>,
    /// What each inode is called, for people.
    names: Vec<String>,
    opens: Vec<Open>,
    descriptors: BTreeMap<i64, usize>,
    ops: Vec<Op>,
}

/// What the calls did beneath `root`, which was empty before.
pub(crate) fn ops(calls: &[Call], root: &Path) -> Vec<Op> {
    let mut watch = Watch {
        root,
        nodes: vec![Node::Directory(BTreeMap::new())],
        names: vec![".".to_owned()],
        opens: Vec::new(),
        descriptors: BTreeMap::new(),
        ops: Vec::new(),
    };
    for call in calls {
        watch.see(call);
    }
    watch.ops
}

/// Calls that change nothing of what is kept apart here: neither content nor names.
const HARMLESS: &[&str] = &[
    "access",
    "chmod",
    "chown",
    "dup",
    "execve",
    "faccessat",
    "faccessat2",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchown",
    "fchownat",
    "fgetxattr",
    "flistxattr",
    "flock",
    "fsetxattr",
    "fstat",
    "fstatfs",
    "getdents64",
    "getxattr",
    "ioctl",
    "lgetxattr",
    "listxattr",
    "llistxattr",
    "lsetxattr",
    "lstat",
    "newfstatat",
    "poll",
    "ppoll",
    "pread64",
    "readlink",
    "readlinkat",
    "setxattr",
    "stat",
    "statfs",
    "statx",
    "utimensat",
];

impl Watch<'_> {
    fn see(&mut self, call: &Call) {
        let arg = |n: usize| call.args.get(n).map_or("", String::as_str);
        if call.name == "write" && descriptor(arg(0)).0 == Some(1) {
            let text = String::from_utf8_lossy(&bytes(arg(1))).into_owned();
            for line in text.lines() {
                self.push(call, "", What::Said(line.to_owned()));
            }
            return;
        }
        let failed = call.result < 0;
        match call.name.as_str() {
            "fsync" | "fdatasync" => return self.sync(call, self.opened(arg(0)), failed),
            "syncfs" if self.opened(arg(0)).is_some() => {
                return self.push(call, "everything", What::Synced { of: None, failed });
            }
            _ if failed => return,
            _ => {}
        }
        match call.name.as_str() {
            "open" | "openat" | "openat2" => self.open(call),
            "close" => drop(descriptor(arg(0)).0.map(|fd| self.descriptors.remove(&fd))),
            "read" | "readv" => self.advance(arg(0), call.result),
            "lseek" => self.seek(arg(0), call.result),
            "fcntl" => self.fcntl(call),
            "write" | "pwrite64" => self.write(call),
            "ftruncate" => self.set_len(call, arg(1)),
            "fallocate" if !arg(1).contains("FALLOC_FL_KEEP_SIZE") => self.allocate(call),
            "fallocate" => assert!(!arg(1).contains("PUNCH"), "{call:?} is not known"),
            "copy_file_range" => self.copy(call, arg(0), arg(2), [arg(1), arg(3)]),
            "sendfile" => self.copy(call, arg(1), arg(0), ["NULL", arg(2)]),
            "fadvise64" if arg(3) == "POSIX_FADV_DONTNEED" => {
                if let Some(open) = self.opened(arg(0)) {
                    self.on(call, open.ino, What::Dropped(open.ino));
                }
            }
            "mkdir" | "mkdirat" | "symlink" | "symlinkat" | "mknod" | "mknodat" => self.make(call),
            "unlink" | "unlinkat" | "rmdir" => self.remove(call),
            "rename" | "renameat" | "renameat2" => self.rename(call),
            "link" | "linkat" => self.link(call),
            name if HARMLESS.contains(&name) => {}
            "mmap" if arg(3).contains("MAP_PRIVATE") || !arg(2).contains("PROT_WRITE") => {}
            _ => assert!(!self.touches(call), "{call:?} is not known"),
        }
    }

    /// Whether a call names something beneath the directory.
    fn touches(&self, call: &Call) -> bool {
        let root: String = (self.root.as_os_str().as_bytes().iter())
            .map(|byte| format!("\\x{byte:02x}"))
            .collect();
        call.args.iter().any(|arg| arg.contains(&root))
    }

    fn push(&mut self, call: &Call, on: &str, what: What) {
        let failed = if call.injected { " (fails)" } else { "" };
        self.ops.push(Op {
            begun: call.begun,
            ended: call.ended,
            call: format!("{} {on}{failed}", call.name),
            thread: call.thread.clone(),
            name: call.name.clone(),
            number: call.number,
            injected: call.injected,
            what,
        });
    }

    fn on(&mut self, call: &Call, ino: Ino, what: What) {
        let name = self.names[ino].clone();
        self.push(call, &name, what);
    }

    fn change(&mut self, call: &Call, ino: Ino, change: Change) {
        match (&mut self.nodes[ino], &change) {
            (Node::File(content), Change::Write { at, bytes }) => write_at(content, *at, bytes),
            (Node::File(content), Change::SetLen(len)) => content.resize(*len as usize, 0),
            (Node::Directory(entries), change) => change_entries(entries, change),
            (Node::File(_) | Node::Other, _) => panic!("{call:?} of no such thing"),
        }
        self.on(call, ino, What::Changed(ino, change));
    }

    fn opened(&self, arg: &str) -> Option<Open> {
        let open = self.descriptors.get(&descriptor(arg).0?)?;
        Some(self.opens[*open])
    }

    fn sync(&mut self, call: &Call, open: Option<Open>, failed: bool) {
        if let Some(Open { ino, .. }) = open {
            let of = Some(ino);
            self.on(call, ino, What::Synced { of, failed });
        }
    }

    /// The directory and the name in it that a path means, where that is beneath our directory. The empty name is
    /// the directory itself.
    fn place(&self, dir: &str, path: &str) -> Option<(Ino, Vec<u8>)> {
        let path = bytes(path);
        let relative = match path.first() {
            Some(b'/') => {
                let path = Path::new(std::ffi::OsStr::from_bytes(&path));
                let rest = path.strip_prefix(self.root).ok()?;
                (0, rest.as_os_str().as_bytes().to_vec())
            }
            _ => (self.opened(dir)?.ino, path),
        };
        let (mut at, path) = relative;
        let mut names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        names.retain(|name| !name.is_empty() && *name != b".");
        let last = names.pop().unwrap_or_default().to_vec();
        for name in names {
            at = self.find(at, name)?;
        }
        Some((at, last))
    }

    fn find(&self, dir: Ino, name: &[u8]) -> Option<Ino> {
        match &self.nodes[dir] {
            _ if name.is_empty() => Some(dir),
            Node::Directory(entries) => entries.get(name).copied(),
            Node::File(_) | Node::Other => None,
        }
    }

    /// A path for people, from the directory on.
    fn path(&self, dir: Ino, name: &[u8]) -> String {
        let name = String::from_utf8_lossy(name);
        match self.names[dir].as_str() {
            "." => name.into_owned(),
            dir => format!("{dir}/{name}"),
        }
    }

    fn born(&mut self, call: &Call, dir: Ino, name: Vec<u8>, kind: Kind) -> Ino {
        let ino = self.nodes.len();
        self.nodes.push(match &kind {
            Kind::File => Node::File(Vec::new()),
            Kind::Directory => Node::Directory(BTreeMap::new()),
            Kind::Symlink(_) | Kind::Special => Node::Other,
        });
        self.names.push(self.path(dir, &name));
        self.on(call, ino, What::Made(kind));
        self.change(call, dir, Change::Put { name, ino });
        ino
    }

    fn open(&mut self, call: &Call) {
        let (place, flags) = match call.name.as_str() {
            "open" => (self.place("", &call.args[0]), &call.args[1]),
            _ => (self.place(&call.args[0], &call.args[1]), &call.args[2]),
        };
        let Some((dir, name)) = place else { return };
        assert!(!flags.contains("O_TMPFILE"), "{call:?} is not known");
        let ino = match self.find(dir, &name) {
            Some(ino) => {
                if flags.contains("O_TRUNC") {
                    self.change(call, ino, Change::SetLen(0));
                }
                ino
            }
            None => {
                assert!(
                    flags.contains("O_CREAT"),
                    "{call:?} found what was not made"
                );
                self.born(call, dir, name, Kind::File)
            }
        };
        self.descriptors.insert(call.result, self.opens.len());
        self.opens.push(Open {
            ino,
            at: 0,
            append: flags.contains("O_APPEND"),
        });
    }

    fn fcntl(&mut self, call: &Call) {
        let of = descriptor(&call.args[0]).0;
        let of = of.and_then(|fd| self.descriptors.get(&fd).copied());
        if let Some(open) = of.filter(|_| call.args[1].starts_with("F_DUPFD")) {
            self.descriptors.insert(call.result, open);
        }
    }

    fn advance(&mut self, arg: &str, by: i64) {
        let open = descriptor(arg).0.and_then(|fd| self.descriptors.get(&fd));
        if let Some(open) = open {
            self.opens[*open].at += by as u64;
        }
    }

    fn seek(&mut self, arg: &str, to: i64) {
        let open = descriptor(arg).0.and_then(|fd| self.descriptors.get(&fd));
        if let Some(open) = open {
            self.opens[*open].at = to as u64;
        }
    }

    fn len(&self, ino: Ino) -> u64 {
        match &self.nodes[ino] {
            Node::File(content) => content.len() as u64,
            Node::Directory(_) | Node::Other => 0,
        }
    }

    fn write(&mut self, call: &Call) {
        let Some(open) = self.opened(&call.args[0]) else {
            return;
        };
        let mut written = bytes(&call.args[1]);
        written.truncate(call.result as usize);
        let at = match call.args.get(3) {
            Some(at) => at.parse().unwrap(),
            None if open.append => self.len(open.ino),
            None => open.at,
        };
        if call.args.get(3).is_none() {
            self.seek(&call.args[0], (at as i64) + call.result);
        }
        self.change(call, open.ino, Change::Write { at, bytes: written });
    }

    fn set_len(&mut self, call: &Call, len: &str) {
        if let Some(open) = self.opened(&call.args[0]) {
            let len = len.parse().unwrap();
            // Also where it has that length: who cuts what may come back says so again.
            self.change(call, open.ino, Change::SetLen(len));
        }
    }

    fn allocate(&mut self, call: &Call) {
        let Some(open) = self.opened(&call.args[0]) else {
            return;
        };
        assert_eq!(call.args[1], "0", "{call:?} is not known");
        let end = call.args[2].parse::<u64>().unwrap() + call.args[3].parse::<u64>().unwrap();
        if end > self.len(open.ino) {
            self.change(call, open.ino, Change::SetLen(end));
        }
    }

    fn copy(&mut self, call: &Call, from: &str, to: &str, offsets: [&str; 2]) {
        let (Some(source), Some(target)) = (self.opened(from), self.opened(to)) else {
            assert!(self.opened(to).is_none(), "{call:?} copies from outside");
            return;
        };
        assert_eq!(offsets, ["NULL"; 2], "{call:?} is not known");
        let Node::File(content) = &self.nodes[source.ino] else {
            panic!("{call:?} copies no file");
        };
        let copied = content[source.at as usize..][..call.result as usize].to_vec();
        self.advance(from, call.result);
        self.advance(to, call.result);
        if !copied.is_empty() {
            let at = target.at;
            self.change(call, target.ino, Change::Write { at, bytes: copied });
        }
    }

    /// The arguments of a call that names one path, whichever form it has.
    fn named(&self, call: &Call) -> Option<(Ino, Vec<u8>)> {
        match call.name.ends_with("at") {
            true => self.place(&call.args[0], &call.args[1]),
            false => self.place("", &call.args[0]),
        }
    }

    fn make(&mut self, call: &Call) {
        let (place, kind) = match call.name.as_str() {
            "symlink" => (
                self.place("", &call.args[1]),
                Kind::Symlink(bytes(&call.args[0])),
            ),
            "symlinkat" => (
                self.place(&call.args[1], &call.args[2]),
                Kind::Symlink(bytes(&call.args[0])),
            ),
            "mkdir" | "mkdirat" => (self.named(call), Kind::Directory),
            _ => (self.named(call), Kind::Special),
        };
        if let Some((dir, name)) = place {
            self.born(call, dir, name, kind);
        }
    }

    fn remove(&mut self, call: &Call) {
        if let Some((dir, name)) = self.named(call) {
            self.change(call, dir, Change::Remove { name });
        }
    }

    /// The arguments of a call that names two paths.
    fn named_twice(&self, call: &Call) -> Option<[(Ino, Vec<u8>); 2]> {
        let paths = match call.args.len() {
            2 => [self.place("", &call.args[0]), self.place("", &call.args[1])],
            _ => [
                self.place(&call.args[0], &call.args[1]),
                self.place(&call.args[2], &call.args[3]),
            ],
        };
        match paths {
            [Some(from), Some(to)] => Some([from, to]),
            [None, None] => None,
            _ => panic!("{call:?} crosses the border"),
        }
    }

    fn rename(&mut self, call: &Call) {
        let Some([(from_dir, from), (to_dir, to)]) = self.named_twice(call) else {
            return;
        };
        let exchanges = call.args.last().is_some_and(|it| it.contains("EXCHANGE"));
        assert!(!exchanges, "{call:?} is not known");
        let ino = self.find(from_dir, &from).unwrap();
        self.names[ino] = self.path(to_dir, &to);
        if from_dir == to_dir {
            return self.change(call, to_dir, Change::Rename { from, to });
        }
        self.change(call, to_dir, Change::Put { name: to, ino });
        self.change(call, from_dir, Change::Remove { name: from });
    }

    fn link(&mut self, call: &Call) {
        if let Some([(from_dir, from), (to_dir, name)]) = self.named_twice(call) {
            let ino = self.find(from_dir, &from).unwrap();
            self.change(call, to_dir, Change::Put { name, ino });
        }
    }
}

/// Writes into a file's content, which grows by zeros where it must.
pub(crate) fn write_at(content: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let (start, end) = (at as usize, at as usize + bytes.len());
    if content.len() < end {
        content.resize(end, 0);
    }
    content[start..end].copy_from_slice(bytes);
}

/// Changes what a directory lists. What a change needs may be missing where an earlier one was lost.
pub(crate) fn change_entries(entries: &mut BTreeMap<Vec<u8>, Ino>, change: &Change) {
    match change {
        Change::Put { name, ino } => drop(entries.insert(name.clone(), *ino)),
        Change::Remove { name } => drop(entries.remove(name)),
        Change::Rename { from, to } => {
            if let Some(ino) = entries.remove(from) {
                entries.insert(to.clone(), ino);
            }
        }
        Change::Write { .. } | Change::SetLen(_) => panic!("{change:?} of a directory"),
    }
}
