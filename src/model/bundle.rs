//! The code of a map: the user's files as one byte string, named by a hash of its content. It is
//! stored once, and sent once to each engine.
//!
//! Format: `PCB1`, the number of files (u32), then for each file, sorted by path: the length of its
//! path (u32), the path, 1 if it is executable, else 0 (u8), its size (u64); then the contents in
//! the same order. Little endian.
use bytes::{Buf, BufMut, Bytes, BytesMut};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

const MAGIC: &[u8] = b"PCB1";

/// One file of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Relative, with `/`, without `.` and `..`.
    pub path: String,
    pub executable: bool,
    pub content: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// SHA-256 of `content`, in hexadecimal.
    pub hash: String,
    pub content: Bytes,
}

#[derive(Debug, thiserror::Error)]
#[error("bundle {0} is malformed")]
pub struct MalformedBundle(String);

impl Bundle {
    /// Builds a bundle. Of several files with the same path, the last one wins.
    pub fn of(files: impl IntoIterator<Item = File>) -> Bundle {
        let files: BTreeMap<String, File> = files.into_iter().map(|file| (file.path.clone(), file)).collect();
        let index: usize = files.keys().map(|path| path.len() + 13).sum();
        let size: usize = files.values().map(|file| file.content.len()).sum();
        let mut content = BytesMut::with_capacity(MAGIC.len() + 4 + index + size);
        content.put_slice(MAGIC);
        content.put_u32_le(files.len() as u32);
        for (path, file) in &files {
            content.put_u32_le(path.len() as u32);
            content.put_slice(path.as_bytes());
            content.put_u8(file.executable.into());
            content.put_u64_le(file.content.len() as u64);
        }
        for file in files.values() {
            content.put_slice(&file.content);
        }
        Bundle::from(content.freeze())
    }

    /// Parses the files, whose contents share its memory; or returns why it is not a bundle.
    pub fn files(&self) -> Result<Vec<File>, MalformedBundle> {
        read(self.content.clone()).ok_or_else(|| MalformedBundle(self.hash.clone()))
    }

    /// SHA-256 of each file, by path.
    pub fn hashes(&self) -> Result<BTreeMap<String, String>, MalformedBundle> {
        let hash = |file: &File| {
            hex::encode(
                Sha256::new()
                    .chain_update([file.executable.into()])
                    .chain_update(&file.content)
                    .finalize(),
            )
        };
        Ok(self.files()?.iter().map(|file| (file.path.clone(), hash(file))).collect())
    }
}

impl From<Bytes> for Bundle {
    fn from(content: Bytes) -> Bundle {
        let hash = hex::encode(Sha256::digest(&content));
        Bundle { hash, content }
    }
}

fn read(mut content: Bytes) -> Option<Vec<File>> {
    let head = content.len().checked_sub(MAGIC.len() + 4).map(|_| content.split_to(MAGIC.len()))?;
    if head != MAGIC {
        return None;
    }
    let count = content.get_u32_le() as usize;
    if count > content.len() / 13 {
        return None;
    }
    let mut index = Vec::with_capacity(count);
    for _ in 0..count {
        let length = content.try_get_u32_le().ok()? as usize;
        let path = (length <= content.len()).then(|| content.split_to(length))?;
        let path = String::from_utf8(path.to_vec()).ok().filter(|path| is_relative(path))?;
        let executable = content.try_get_u8().ok()? != 0;
        index.push((path, executable, usize::try_from(content.try_get_u64_le().ok()?).ok()?));
    }
    let files: Option<Vec<File>> = index
        .into_iter()
        .map(|(path, executable, size)| {
            let content = (size <= content.len()).then(|| content.split_to(size))?;
            Some(File { path, executable, content })
        })
        .collect();
    files.filter(|_| content.is_empty())
}

/// Whether a path stays inside the directory that it is joined to.
pub(crate) fn is_relative(path: &str) -> bool {
    !path.is_empty() && !path.contains('\0') && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(path: &str, content: &[u8]) -> File {
        File {
            path: path.into(),
            executable: path.ends_with(".sh"),
            content: Bytes::copy_from_slice(content),
        }
    }

    #[test]
    fn the_same_files_in_any_order_are_the_same_bundle() {
        let (a, b) = (file("a.py", b"x = 1\n"), file("data/run.sh", b"\xff\0"));
        let bundle = Bundle::of([b.clone(), a.clone()]);
        assert_eq!(bundle, Bundle::of([a.clone(), b.clone()]));
        assert_eq!(bundle.files().unwrap(), [a.clone(), b.clone()]);
        let mut other = a.clone();
        other.executable = true;
        for changed in [vec![a.clone()], vec![other, b.clone()], vec![file("a.py", b"x = 2\n"), b]] {
            assert_ne!(Bundle::of(changed).hash, bundle.hash);
        }
        assert_eq!(bundle.hashes().unwrap().len(), 2);
    }

    #[test]
    fn paths_outside_the_directory_are_rejected() {
        for path in ["/etc/passwd", "../x", "a/../../x", "", "a//b", "./a", "a\0b", "a/"] {
            assert!(Bundle::of([file(path, b"")]).files().is_err(), "{path:?}");
        }
    }

    proptest! {
        #[test]
        fn files_round_trip(names in proptest::collection::btree_map("[a-z]{1,5}(/[a-z]{1,3})?", proptest::collection::vec(any::<u8>(), 0..40), 0..6)) {
            let files: Vec<File> = names.iter().map(|(path, content)| file(path, content)).collect();
            prop_assert_eq!(Bundle::of(files.clone()).files().unwrap(), files);
        }
        #[test]
        fn malformed_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60), at in 0usize..20, byte: u8) {
            let _ = Bundle::from(Bytes::from(bytes)).files();
            let mut good = Bundle::of([file("a", b"12"), file("b", b"")]).content.to_vec();
            good[at] = byte;
            let _ = Bundle::from(Bytes::from(good)).files();
        }
    }
}
