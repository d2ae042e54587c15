//! The one place that turns stored values into MessagePack and back. Named maps; all input must be used.

use serde::Serialize;
use serde::de::DeserializeOwned;

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
    let mut rest = bytes;
    let value = rmp_serde::from_read(&mut rest).map_err(Error::Decode)?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(Error::Trailing(rest.len()))
    }
}
