//! What the two ends say, encoded, decoded and mutated.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::transfer::message::{FromReceiver, Pack, decode, encode};

fn any_sender() -> impl Strategy<Value = FromSender> {
    let blob = || vec(any::<u8>(), 0..200).prop_map(Blob);
    let hash = || any::<[u8; 32]>().prop_map(Hash);
    let ranges = vec(any::<(u32, u32)>(), 0..10);
    prop_oneof![
        (hash(), any::<u64>()).prop_map(|(manifest, manifest_len)| FromSender::Offer {
            manifest,
            manifest_len
        }),
        (any::<u32>(), blob()).prop_map(|(len, bytes)| FromSender::Manifest { len, bytes }),
        (hash(), ranges, any::<bool>(), blob()).prop_map(|(id, pieces, zstd, bytes)| {
            FromSender::Pack(Pack {
                id,
                pieces,
                zstd,
                bytes,
            })
        }),
        Just(FromSender::Working),
    ]
}

fn any_receiver() -> impl Strategy<Value = FromReceiver> {
    prop_oneof![
        Just(FromReceiver::WantManifest),
        (vec(any::<(u32, u32)>(), 0..10), any::<bool>())
            .prop_map(|(pieces, more)| FromReceiver::Want { pieces, more }),
        any::<u32>().prop_map(|packs| FromReceiver::Credit { packs }),
        Just(FromReceiver::Done),
    ]
}

proptest! {
    #[test]
    fn messages_come_back_as_they_were(a in any_sender(), b in any_receiver()) {
        prop_assert_eq!(decode::<FromSender>(&encode(a.clone()).unwrap()).unwrap(), a);
        prop_assert_eq!(decode::<FromReceiver>(&encode(b.clone()).unwrap()).unwrap(), b);
    }

    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..300), message in any_sender(), at in any::<prop::sample::Index>()) {
        let _ = decode::<FromSender>(&bytes);
        let _ = decode::<FromReceiver>(&bytes);
        let mut bent = encode(message).unwrap();
        let at = at.index(bent.len());
        bent[at] ^= 0x55;
        let _ = decode::<FromSender>(&bent);
    }
}

#[test]
fn another_version_is_refused_by_its_number() {
    let mut bytes = encode(FromSender::Working).unwrap();
    let at = bytes.windows(8).position(|w| w == b"\xa7version").unwrap() + 8;
    bytes[at] = 9;
    let failure = decode::<FromSender>(&bytes).unwrap_err();
    assert!(failure.message.contains("version 9"), "{}", failure.message);
}
