//! Messages on a line between two processes of this machine: a greeting with the version, then frames with their length.
//!
//! A length that is only claimed takes no memory, and what is too long is not read.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tallybook_events::codec;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use super::super::Error;
use super::PROTOCOL;

/// What both ends say first, before the version in two bytes, little-endian.
const GREETING: [u8; 4] = *b"TBSK";
pub(super) const FRAME_LEN_MAX: u32 = 256 * 1024 * 1024;

/// Why a message could not be read.
pub(crate) enum ReadError {
    Line(
        #[expect(
            dead_code,
            reason = "a lost line is answered by asking again, whatever its cause"
        )]
        io::Error,
    ),
    /// Something else than a greeting.
    Strange,
    Codec(codec::Error),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        ReadError::Line(error)
    }
}

pub(super) fn greeting() -> [u8; 6] {
    let [low, high] = PROTOCOL.to_le_bytes();
    let [a, b, c, d] = GREETING;
    [a, b, c, d, low, high]
}

/// The version that the other end speaks.
pub(super) async fn read_greeting(stream: &mut UnixStream) -> Result<u16, ReadError> {
    let mut said = [0; 6];
    stream.read_exact(&mut said).await?;
    match said.split_first_chunk() {
        Some((&GREETING, &[low, high])) => Ok(u16::from_le_bytes([low, high])),
        _ => Err(ReadError::Strange),
    }
}

pub(crate) async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<T, ReadError> {
    read_within(stream, FRAME_LEN_MAX).await
}

/// A message that is not longer than this.
pub(crate) async fn read_within<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    len_max: u32,
) -> Result<T, ReadError> {
    let len = stream.read_u32_le().await.map_err(ReadError::Line)?;
    if len > len_max {
        return Err(ReadError::Line(io::ErrorKind::InvalidData.into()));
    }
    // As it comes: a length that is only claimed takes no memory.
    let mut bytes = Vec::new();
    let mut body = stream.take(u64::from(len));
    body.read_to_end(&mut bytes)
        .await
        .map_err(ReadError::Line)?;
    if bytes.len() < len as usize {
        return Err(ReadError::Line(io::ErrorKind::UnexpectedEof.into()));
    }
    codec::decode(&bytes).map_err(ReadError::Codec)
}

/// A message with its length before it.
pub(crate) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    let body = codec::encode(message).map_err(Error::Protocol)?;
    let len = u32::try_from(body.len())
        .ok()
        .filter(|len| *len <= FRAME_LEN_MAX)
        .ok_or(Error::TooLarge(body.len()))?;
    let mut bytes = Vec::with_capacity(4 + body.len());
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

pub(crate) async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}
