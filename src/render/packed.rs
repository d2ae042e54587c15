//! A step's parameters and outputs, which are MessagePack, as JSON for display.
//!
//! For people and programs that look: nothing is decoded from this again.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use tallybook_events::codec;
use tallybook_events::ids::Blob;

/// The value that MessagePack bytes hold. Bytes inside are shown as text where they are UTF-8, else as `hex:` and
/// digits; what is not MessagePack is shown so as a whole. `null` when there are no bytes.
pub fn value(blob: &Blob) -> Value {
    if blob.0.is_empty() {
        return Value::Null;
    }
    match codec::decode::<Plain>(&blob.0) {
        Ok(Plain(value)) => value,
        Err(_) => Value::String(blob.to_string()),
    }
}

struct Plain(Value);

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PlainVisitor).map(Plain)
    }
}

struct PlainVisitor;

impl<'de> Visitor<'de> for PlainVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Value, E> {
        Ok(Blob(bytes.to_vec()).to_string().into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Plain(value)) = items.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((Plain(key), Plain(value))) = entries.next_entry()? {
            let key = match key {
                Value::String(key) => key,
                Value::Null | Value::Bool(_) | Value::Number(_) => key.to_string(),
                // Nobody writes such; as a text within a text within a text it would double with each level.
                Value::Array(_) | Value::Object(_) => {
                    return Err(serde::de::Error::custom("a key is a list or a map"));
                }
            };
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Serialize;
    use tallybook_events::ids::Hash;

    #[derive(Serialize)]
    struct Params {
        name: &'static str,
        size: u64,
        hash: Hash,
        text: Blob,
        ports: Vec<u16>,
        nothing: Option<u8>,
    }

    #[test]
    fn a_named_map_is_an_object() {
        let params = Params {
            name: "web",
            size: 5,
            hash: Hash([0xab; 32]),
            text: Blob(b"hello".to_vec()),
            ports: vec![22, 80],
            nothing: None,
        };
        let blob = Blob(codec::encode(&params).unwrap());
        let hash = format!("hex:{}", "ab".repeat(32));
        let expected = serde_json::json!({
            "name": "web", "size": 5, "hash": hash, "text": "hello", "ports": [22, 80], "nothing": null,
        });
        assert_eq!(value(&blob), expected);
    }

    #[test]
    fn what_is_no_value_is_shown_as_it_is() {
        assert_eq!(value(&Blob(Vec::new())), Value::Null);
        assert_eq!(value(&Blob(vec![0xc1, 0xff])), Value::from("hex:c1ff"));
        assert_eq!(
            value(&Blob(b"two words".to_vec())),
            Value::from("two words")
        );
    }

    #[test]
    fn a_map_that_is_a_key_does_not_grow_without_end() {
        // Maps of one pair, each the key of the one around it.
        let mut bytes = vec![0x81; 20];
        bytes.push(0xa1);
        bytes.push(b'"');
        bytes.extend([0xc0; 20]);
        assert!(value(&Blob(bytes)).to_string().len() < 1000);
    }
}
