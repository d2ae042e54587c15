//! What controller and agent say to each other, in both directions, as it comes off the line.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tallybook_agent::protocol::{self, Reply, Request};

use crate::memory::bounded;
use crate::{chosen, part};

/// A stream of frames of one direction, raw or with lengths that hold.
pub fn run(bytes: &[u8]) {
    let Some((which, bytes)) = chosen(bytes) else {
        return;
    };
    match which % 4 {
        0 => stream::<Request>(bytes),
        1 => stream::<Reply>(bytes),
        2 => stream::<Request>(&framed(bytes)),
        _ => stream::<Reply>(&framed(bytes)),
    }
}

fn framed(mut bytes: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    while !bytes.is_empty() {
        let body = part(&mut bytes);
        stream.extend_from_slice(&(body.len() as u32).to_le_bytes());
        stream.extend_from_slice(body);
    }
    stream
}

fn stream<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let mut rest = bytes;
    loop {
        let before = rest.len();
        let read = bounded(bytes.len(), || protocol::read_frame::<T>(&mut rest));
        match read {
            Ok(Some(message)) => {
                assert!(rest.len() + 4 <= before, "a frame was taken off the line");
                let frame = protocol::encode_frame(&message).expect("it came in a frame");
                let read = protocol::read_frame::<T>(&frame[..]).expect("it was encoded");
                // Some messages hold secrets, which can't be compared: their bytes can.
                let again = read.map(|read| protocol::encode_frame(&read).expect("it was read"));
                assert_eq!(again, Some(frame));
            }
            Ok(None) => return assert_eq!(before, 0, "only an end between frames is one"),
            Err(_) => return,
        }
    }
}
