//! The file that stores a message's buffers, known to every copy of the message once they are
//! written.
use bytes::Bytes;
use std::sync::{Arc, OnceLock};

/// Buffers whose total size is below this stay in their database row.
pub(crate) const MIN_FILE_BYTES: usize = 1 << 20;

/// The name of the file that contains a message's buffers, if they are stored in a file.
#[derive(Clone, Debug, Default)]
pub struct BufferFile(Option<Arc<OnceLock<String>>>);

impl BufferFile {
    /// A handle for a message with these buffers: the name is set when they are written.
    pub fn unwritten(buffers: &[Bytes]) -> BufferFile {
        let large = buffers.iter().map(Bytes::len).sum::<usize>() >= MIN_FILE_BYTES;
        BufferFile(large.then(Arc::default))
    }

    pub fn from_name(name: Option<String>) -> BufferFile {
        BufferFile(name.map(|name| Arc::new(OnceLock::from(name))))
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
pub(crate) fn is_name(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_copy_of_a_large_message_sees_the_file_name() {
        let large = BufferFile::unwritten(&[Bytes::from(vec![0; MIN_FILE_BYTES - 1]), Bytes::from_static(b"x")]);
        let copy = large.clone();
        assert_eq!(copy.name(), None);
        large.set("a");
        large.set("b");
        assert_eq!(copy.name(), Some("a"));
        let small = BufferFile::unwritten(&[Bytes::from_static(b"x")]);
        small.set("a");
        assert_eq!(small.name(), None);
    }
}
