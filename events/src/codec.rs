//! The one place that turns stored values into MessagePack and back. Named maps; all input must be used.

use std::io;

use rmp_serde::decode;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

/// A value that could not be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The value has no MessagePack form.
    #[error("can't encode a value for storage")]
    Encode(#[source] rmp_serde::encode::Error),
    /// The bytes are not the value that was expected.
    #[error("can't decode a stored value")]
    Decode(#[source] rmp_serde::decode::Error),
    /// The bytes are such a value in another form than the one that is written.
    #[error("a stored value is not in the one form that it is written in")]
    Form,
    /// Bytes follow the value.
    #[error("{0} bytes follow a stored value")]
    Trailing(usize),
}

/// Encodes as a named map.
///
/// # Errors
/// When the value has no MessagePack form.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    rmp_serde::to_vec_named(value).map_err(Error::Encode)
}

/// Decodes, and refuses trailing bytes.
///
/// # Errors
/// When the bytes are not exactly one such value.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    // In place: a reader of a stream would copy every text twice. It does not say how far it came, but whether anything
    // follows.
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
    let value = T::deserialize(&mut reader).map_err(Error::Decode)?;
    match <()>::deserialize(&mut reader) {
        Err(decode::Error::InvalidMarkerRead(_)) => Ok(value),
        Ok(()) | Err(_) => {
            let mut rest = bytes;
            let _read: Result<IgnoredAny, _> = rmp_serde::from_read(&mut rest);
            Err(Error::Trailing(rest.len()))
        }
    }
}

/// Whether a value encodes to exactly these bytes.
///
/// # Errors
/// When the value has no MessagePack form.
pub fn is_encoded_as<T: Serialize>(value: &T, bytes: &[u8]) -> Result<bool, Error> {
    let mut compared = Compared {
        rest: bytes,
        is_same: true,
    };
    rmp_serde::encode::write_named(&mut compared, value).map_err(Error::Encode)?;
    Ok(compared.is_same && compared.rest.is_empty())
}

/// Holds what is written against what must be.
struct Compared<'a> {
    rest: &'a [u8],
    is_same: bool,
}

impl io::Write for Compared<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.rest.split_at_checked(bytes.len()) {
            Some((same, rest)) if same == bytes => self.rest = rest,
            Some(_) | None => self.is_same = false,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
