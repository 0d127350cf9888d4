//! Where a message's buffers are kept, once they are: known to every copy of the message.
use bytes::Bytes;
use std::sync::{Arc, OnceLock};

/// A message's buffers of fewer bytes together stay in their row of the database.
pub const LEAST: usize = 1 << 20;

/// The name of the file in which a message's buffers are, for those that are kept in one.
#[derive(Clone, Debug, Default)]
pub struct Kept(Option<Arc<OnceLock<String>>>);

impl Kept {
    /// For a message with these buffers: the name comes when they are written.
    pub fn when_written(buffers: &[Bytes]) -> Kept {
        let large = buffers.iter().map(Bytes::len).sum::<usize>() >= LEAST;
        Kept(large.then(Arc::default))
    }

    pub fn named(name: Option<String>) -> Kept {
        Kept(name.map(|name| Arc::new(OnceLock::from(name))))
    }

    pub fn set(&self, name: &str) {
        if let Some(cell) = &self.0 {
            // A batch that is tried again writes under the same name.
            let _ = cell.set(name.to_string());
        }
    }

    pub fn name(&self) -> Option<&str> {
        self.0.as_ref()?.get().map(String::as_str)
    }
}

/// 64 hexadecimal digits: a name is what the file's content hashes to, and never a path.
pub fn is_name(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_copy_knows_the_name_of_what_is_large() {
        let large = Kept::when_written(&[Bytes::from(vec![0; LEAST - 1]), Bytes::from_static(b"x")]);
        let copy = large.clone();
        assert_eq!(copy.name(), None);
        large.set("a");
        large.set("b");
        assert_eq!(copy.name(), Some("a"));
        let small = Kept::when_written(&[Bytes::from_static(b"x")]);
        small.set("a");
        assert_eq!(small.name(), None);
    }
}
