//! The output of a task: bytes, exactly as they were written. Short outputs are sent and stored
//! with their task. Longer ones are sent in parts and stored in a file next to the database. Long
//! values are handled in the same way.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;

/// Maximum size in bytes of an output or value that stays with its task, in messages and in the
/// database.
pub(crate) const INLINE: usize = 256 << 10;
/// The number of bytes of a longer one that are stored with the task as a preview.
pub(crate) const HEAD: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Stdout,
    Stderr,
    /// The exact value: its pickle, else its JSON text.
    Value,
}

/// The size of each stream in bytes.
pub(crate) type Written = [u64; 3];

impl Stream {
    pub const ALL: [Stream; 3] = [Stream::Stdout, Stream::Stderr, Stream::Value];
    pub const OUTPUTS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];
    pub fn as_str(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
            Stream::Value => "value",
        }
    }
}

/// One stream of one attempt, or a part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// The offset of `bytes` in the stream.
    pub start: u64,
    pub bytes: Bytes,
    /// The size of the whole stream.
    pub size: u64,
}

impl Output {
    pub fn whole(bytes: impl Into<Bytes>) -> Output {
        let bytes = bytes.into();
        Output {
            start: 0,
            size: bytes.len() as u64,
            bytes,
        }
    }

    /// The last bytes of a stream, starting at offset `start`.
    pub fn rest(start: u64, bytes: impl Into<Bytes>) -> Output {
        let bytes = bytes.into();
        Output {
            start,
            size: start + bytes.len() as u64,
            bytes,
        }
    }

    /// The part after the first `written` bytes of the stream; None if bytes between them are missing.
    pub fn following(&self, written: u64) -> Option<Bytes> {
        let known = usize::try_from(written.checked_sub(self.start)?).ok()?;
        Some(self.bytes.get(known..).map(|rest| self.bytes.slice_ref(rest)).unwrap_or_default())
    }

    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    pub fn is_whole(&self) -> bool {
        self.start == 0 && self.bytes.len() as u64 == self.size
    }

    /// The bytes as text; invalid UTF-8 is replaced.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }

    /// The bytes as text, if they are UTF-8 that JSON does not lengthen much.
    fn plain_text(&self) -> Option<&str> {
        // An escaped byte takes six characters.
        let escaped = self
            .bytes
            .iter()
            .filter(|byte| byte.is_ascii_control() && !byte.is_ascii_whitespace())
            .count();
        (escaped <= 16 || escaped <= self.bytes.len() / 8)
            .then(|| std::str::from_utf8(&self.bytes).ok())
            .flatten()
    }

    /// A string in JSON.
    pub fn is_plain_text(&self) -> bool {
        self.is_whole() && self.plain_text().is_some()
    }

    pub fn base64(&self) -> String {
        STANDARD.encode(&self.bytes)
    }

    #[cfg(test)]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes).unwrap()
    }
}

impl From<&str> for Output {
    fn from(text: &str) -> Output {
        Output::whole(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<String> for Output {
    fn from(text: String) -> Output {
        Output::whole(text)
    }
}

/// A string if all bytes are present and UTF-8 (with few control characters); else an object with
/// `text` or `base64`, `start`, `size`.
impl Serialize for Output {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.plain_text();
        if let (true, Some(text)) = (self.is_whole(), text) {
            return serializer.serialize_str(text);
        }
        let mut map = serializer.serialize_map(None)?;
        match text {
            Some(text) => map.serialize_entry("text", text)?,
            None => map.serialize_entry("base64", &self.base64())?,
        }
        map.serialize_entry("start", &self.start)?;
        map.serialize_entry("size", &self.size)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Output {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Output, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Output;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, or an object with text or base64, start and size")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Output, E> {
                Ok(text.into())
            }
            fn visit_string<E: Error>(self, text: String) -> Result<Output, E> {
                Ok(text.into())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Output, A::Error> {
                let (mut bytes, mut start, mut size) = (Bytes::new(), 0, None);
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    match &*key {
                        "text" => bytes = Bytes::from(map.next_value::<String>()?),
                        "base64" => {
                            let text = map.next_value::<Cow<'de, str>>()?;
                            bytes = STANDARD.decode(&*text).map_err(A::Error::custom)?.into();
                        }
                        "start" => start = map.next_value::<u64>()?,
                        "size" => size = Some(map.next_value::<u64>()?),
                        _ => drop(map.next_value::<serde::de::IgnoredAny>()?),
                    }
                }
                let here = start
                    .checked_add(bytes.len() as u64)
                    .ok_or_else(|| A::Error::custom("an output with more bytes than its size"))?;
                Ok(Output {
                    start,
                    bytes,
                    size: size.unwrap_or(here).max(here),
                })
            }
        }
        deserializer.deserialize_any(Read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_is_a_string_and_other_bytes_are_an_object() {
        let json = |output: &Output| serde_json::to_string(output).unwrap();
        assert_eq!(json(&"a\n".into()), r#""a\n""#);
        assert_eq!(json(&Output::whole(vec![0xff, 0])), r#"{"base64":"/wA=","start":0,"size":2}"#);
        assert_eq!(json(&Output::rest(3, "x")), r#"{"text":"x","start":3,"size":4}"#);
        for bad in ["7", r#"{"base64":"?"}"#, r#"{"text":"x","start":18446744073709551615}"#] {
            assert!(serde_json::from_str::<Output>(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn bytes_round_trip(bytes in proptest::collection::vec(any::<u8>(), 0..40), start in 0u64..3, more in 0u64..3) {
            let mut output = Output::rest(start, bytes);
            output.size += more;
            let text = serde_json::to_string(&output).unwrap();
            prop_assert_eq!(serde_json::from_str::<Output>(&text).unwrap(), output);
        }
    }
}
