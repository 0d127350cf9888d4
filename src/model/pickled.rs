//! Values that JSON cannot represent exactly.
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The pickle of a Python value whose JSON is only a rendering for display. In a message the JSON
/// contains only its type; the pickles are buffers after it, in the order of the values
/// ([`buffers`], [`fill`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pickled {
    /// `collections.Counter`, `dict` (for example one whose keys are not strings).
    #[serde(rename = "type")]
    pub python_type: String,
    #[serde(skip)]
    pub bytes: Bytes,
}

/// The buffers that accompany the JSON of a message.
pub(crate) fn buffers<'a>(values: impl IntoIterator<Item = &'a Option<Pickled>>) -> Vec<Bytes> {
    values.into_iter().flatten().map(|pickled| pickled.bytes.clone()).collect()
}

/// Puts the buffers of a message back into its values. Returns false if their number does not match
/// the values that need one.
pub(crate) fn fill<'a>(values: impl IntoIterator<Item = &'a mut Option<Pickled>>, buffers: &mut impl Iterator<Item = Bytes>) -> bool {
    values.into_iter().flatten().all(|pickled| match buffers.next() {
        Some(bytes) => {
            pickled.bytes = bytes;
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fill_restores_the_buffers_of_their_values() {
        let pickled = |bytes: &'static [u8]| {
            Some(Pickled {
                python_type: "set".into(),
                bytes: Bytes::from_static(bytes),
            })
        };
        let values = [pickled(b"a"), None, pickled(b"bc")];
        let mut received: Vec<Option<Pickled>> = serde_json::from_str(&serde_json::to_string(&values).unwrap()).unwrap();
        assert_ne!(received, values);
        let sent = buffers(&values);
        assert_eq!(sent.len(), 2);
        let mut left = sent.clone().into_iter().chain([Bytes::from_static(b"more")]);
        assert!(fill(&mut received, &mut left));
        assert_eq!(received, values);
        assert_eq!(left.next().as_deref(), Some(&b"more"[..]));
        assert!(!fill(&mut received, &mut sent.into_iter().skip(1)));
    }
}
