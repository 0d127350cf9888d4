//! The file that stores a message's buffers, known to every copy of the message once they are
//! written.
use bytes::Bytes;
use std::sync::{Arc, OnceLock};

/// Buffers whose total size is below this stay in their database row.
pub const LEAST: usize = 1 << 20;

/// The name of the file that contains a message's buffers, if they are stored in a file.
#[derive(Clone, Debug, Default)]
pub struct Kept(Option<Arc<OnceLock<String>>>);

impl Kept {
    /// A handle for a message with these buffers: the name is set when they are written.
    pub fn when_written(buffers: &[Bytes]) -> Kept {
        let large = buffers.iter().map(Bytes::len).sum::<usize>() >= LEAST;
        Kept(large.then(Arc::default))
    }

    pub fn named(name: Option<String>) -> Kept {
        Kept(name.map(|name| Arc::new(OnceLock::from(name))))
    }

    pub fn set(&self, name: &str) {
        if let Some(cell) = &self.0 {
            // A batch that is retried writes under the same name.
            let _ = cell.set(name.to_string());
        }
    }

    pub fn name(&self) -> Option<&str> {
        self.0.as_ref()?.get().map(String::as_str)
    }
}

/// 64 hexadecimal digits: a name is the hash of the file's content, and never a path.
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
