//! The bytes of a manifest, as the parent module describes them. Whether the entries fit each other is checked
//! there; here, that the bytes have one reading.

use std::collections::BTreeMap;

use tallybook_events::ids::Hash;

use super::{Content, Entry, Error, Extent, Inode, Kind, Node, TreePath, piece_runs};

/// How every manifest begins.
pub const MAGIC: [u8; 8] = *b"\x89TBTREE\n";
/// The longest manifest, in bytes: room for about two million files.
pub const LEN_MAX: u64 = 256 * 1024 * 1024;

const FORMAT: u16 = 1;

const LINK: u8 = 0;
const DIRECTORY: u8 = 1;
const FILE: u8 = 2;
const SPARSE_FILE: u8 = 3;
const SYMLINK: u8 = 4;
const CHAR_DEVICE: u8 = 5;
const BLOCK_DEVICE: u8 = 6;
const FIFO: u8 = 7;
const SOCKET: u8 = 8;

pub(super) fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + entries.len() * 128);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    for entry in entries {
        bytes16(&mut out, entry.path.as_bytes());
        match &entry.node {
            Node::Link { first } => {
                out.push(LINK);
                bytes16(&mut out, first.as_bytes());
            }
            Node::Inode(inode) => encode_inode(&mut out, inode),
        }
    }
    out
}

// The lengths below are bounded by the checks that every manifest has passed.
fn bytes16(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn encode_inode(out: &mut Vec<u8>, inode: &Inode) {
    out.push(match &inode.kind {
        Kind::Directory => DIRECTORY,
        Kind::File(content) if content.extents.is_some() => SPARSE_FILE,
        Kind::File(_) => FILE,
        Kind::Symlink { .. } => SYMLINK,
        Kind::CharDevice { .. } => CHAR_DEVICE,
        Kind::BlockDevice { .. } => BLOCK_DEVICE,
        Kind::Fifo => FIFO,
        Kind::Socket => SOCKET,
    });
    out.extend_from_slice(&inode.mode.to_le_bytes());
    out.extend_from_slice(&inode.uid.to_le_bytes());
    out.extend_from_slice(&inode.gid.to_le_bytes());
    out.extend_from_slice(&inode.mtime_s.to_le_bytes());
    out.extend_from_slice(&inode.mtime_ns.to_le_bytes());
    out.extend_from_slice(&(inode.xattrs.len() as u16).to_le_bytes());
    for (name, value) in &inode.xattrs {
        out.push(name.len() as u8);
        out.extend_from_slice(name);
        out.extend_from_slice(&(value.len() as u32).to_le_bytes());
        out.extend_from_slice(value);
    }
    match &inode.kind {
        Kind::Directory | Kind::Fifo | Kind::Socket => {}
        Kind::File(content) => encode_content(out, content),
        Kind::Symlink { target } => bytes16(out, target),
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            out.extend_from_slice(&major.to_le_bytes());
            out.extend_from_slice(&minor.to_le_bytes());
        }
    }
}

fn encode_content(out: &mut Vec<u8>, content: &Content) {
    out.extend_from_slice(&content.size.to_le_bytes());
    if let Some(extents) = &content.extents {
        out.extend_from_slice(&(extents.len() as u32).to_le_bytes());
        for extent in extents {
            out.extend_from_slice(&extent.offset.to_le_bytes());
            out.extend_from_slice(&extent.len.to_le_bytes());
        }
    }
    for hash in &content.pieces {
        out.extend_from_slice(&hash.0);
    }
}

pub(super) fn decode(bytes: &[u8]) -> Result<Vec<Entry>, Error> {
    if bytes.len() as u64 > LEN_MAX {
        return Err(Error::TooLong(bytes.len() as u64));
    }
    let mut reader = Reader {
        rest: bytes,
        entry: 0,
    };
    if reader.take(MAGIC.len()).is_ok_and(|magic| magic != MAGIC) || bytes.len() < MAGIC.len() {
        return Err(Error::Magic);
    }
    let format = reader.u16()?;
    if format != FORMAT {
        return Err(Error::Format(format));
    }
    let count = reader.u32()? as usize;
    // An entry takes at least 5 bytes, so what is allocated is bounded by what is there.
    let mut entries = Vec::with_capacity(count.min(reader.rest.len() / 5));
    for entry in 0..count {
        reader.entry = entry;
        entries.push(reader.entry()?);
    }
    if reader.rest.is_empty() {
        Ok(entries)
    } else {
        Err(Error::Trailing(reader.rest.len()))
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    entry: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(Error::Truncated { entry: self.entry })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (taken, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(Error::Truncated { entry: self.entry })?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, Error> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Error> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes16(&mut self) -> Result<&'a [u8], Error> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    const fn fault(&self, what: &'static str) -> Error {
        Error::Field {
            entry: self.entry,
            what,
        }
    }

    fn path(&mut self) -> Result<TreePath, Error> {
        let bytes = self.bytes16()?;
        TreePath::new(bytes).map_err(|what| self.fault(what))
    }

    fn entry(&mut self) -> Result<Entry, Error> {
        let path = self.path()?;
        let kind = self.u8()?;
        let node = if kind == LINK {
            Node::Link {
                first: self.path()?,
            }
        } else {
            Node::Inode(self.inode(kind)?)
        };
        Ok(Entry { path, node })
    }

    fn inode(&mut self, kind: u8) -> Result<Inode, Error> {
        Ok(Inode {
            mode: self.u16()?,
            uid: self.u32()?,
            gid: self.u32()?,
            mtime_s: self.array().map(i64::from_le_bytes)?,
            mtime_ns: self.u32()?,
            xattrs: self.xattrs()?,
            kind: self.kind(kind)?,
        })
    }

    fn xattrs(&mut self) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Error> {
        let count = self.u16()?;
        let mut xattrs: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for _ in 0..count {
            let len = self.u8()?;
            let name = self.take(usize::from(len))?;
            let last = xattrs.last_key_value();
            if last.is_some_and(|(last, _)| last.as_slice() >= name) {
                return Err(self.fault("extended attributes are out of order or there twice"));
            }
            let len = self.u32()? as usize;
            xattrs.insert(name.to_vec(), self.take(len)?.to_vec());
        }
        Ok(xattrs)
    }

    fn kind(&mut self, kind: u8) -> Result<Kind, Error> {
        Ok(match kind {
            DIRECTORY => Kind::Directory,
            FILE => Kind::File(self.content(false)?),
            SPARSE_FILE => Kind::File(self.content(true)?),
            SYMLINK => Kind::Symlink {
                target: self.bytes16()?.to_vec(),
            },
            CHAR_DEVICE => Kind::CharDevice {
                major: self.u32()?,
                minor: self.u32()?,
            },
            BLOCK_DEVICE => Kind::BlockDevice {
                major: self.u32()?,
                minor: self.u32()?,
            },
            FIFO => Kind::Fifo,
            SOCKET => Kind::Socket,
            _ => return Err(self.fault("has an unknown type")),
        })
    }

    fn content(&mut self, sparse: bool) -> Result<Content, Error> {
        let size = self.u64()?;
        let extents = if sparse {
            let count = self.u32()? as usize;
            let mut extents = Vec::with_capacity(count.min(self.rest.len() / 16));
            for _ in 0..count {
                let (offset, len) = (self.u64()?, self.u64()?);
                // Counting the pieces, below, needs extents that ascend and lie inside.
                let inside = offset.checked_add(len).is_some_and(|end| end <= size);
                let last: Option<&Extent> = extents.last();
                if !inside || last.is_some_and(|last| last.end() > offset) {
                    return Err(self.fault("has an extent out of order or outside of it"));
                }
                extents.push(Extent { offset, len });
            }
            Some(extents)
        } else {
            None
        };
        let runs = piece_runs(size, extents.as_deref());
        let count = runs
            .iter()
            .fold(0, |sum: u64, run| sum.saturating_add(run.1));
        if count > (self.rest.len() / 32) as u64 {
            return Err(Error::Truncated { entry: self.entry });
        }
        let mut pieces = Vec::with_capacity(count as usize);
        for _ in 0..count {
            pieces.push(Hash(self.array()?));
        }
        Ok(Content {
            size,
            extents,
            pieces,
        })
    }
}
