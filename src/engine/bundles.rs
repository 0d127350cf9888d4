//! Stores the code of maps on this host: each bundle is written once, into a private directory of this engine, which the engine
//! removes at its end. The directory has an unpredictable name, and no other user can write to it.
use super::code_directory::{CodeDirectory, remove};
use crate::model::bundle::Bundle;
use bytes::Bytes;
use std::collections::HashMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bundles of at least this size are written on another thread.
pub(super) const LARGE: usize = 1 << 20;

/// The path of a bundle, or why it is unavailable.
type StoredPath = Result<PathBuf, StoreError>;

#[derive(Debug, Default)]
pub(super) struct BundleStore {
    /// Created for the first bundle.
    directory: Option<CodeDirectory>,
    paths: HashMap<String, StoredPath>,
}

/// Why a bundle or values could not be stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StoreError {
    /// The bundle is invalid: no host could write it.
    #[error("{0}")]
    Bundle(String),
    /// A problem of this host or of the transfer: another host may succeed.
    #[error("{0}")]
    Host(String),
    #[error("the engine has not received it")]
    NotReceived,
}

impl StoreError {
    fn host(path: &Path, error: &io::Error) -> StoreError {
        StoreError::Host(format!("{}: {error}", path.display()))
    }
}

impl BundleStore {
    /// The path of the bundle with this hash.
    pub(super) fn path(&self, hash: &str) -> StoredPath {
        match self.paths.get(hash) {
            Some(place) => place.clone(),
            None => Err(StoreError::NotReceived),
        }
    }

    /// Checks that tasks of this bundle can run on this host. An invalid bundle passes: its tasks fail with the reason.
    pub(super) fn check(&mut self, hash: &str) -> Result<(), StoreError> {
        match self.paths.get(hash) {
            Some(Ok(place)) if !place.is_dir() => {
                let why = format!("{} was removed", place.display());
                self.paths.remove(hash);
                Err(StoreError::Host(why))
            }
            Some(_) => Ok(()),
            None => Err(StoreError::NotReceived),
        }
    }

    /// Checks that files can be written.
    pub(super) fn probe(&mut self) -> Result<(), StoreError> {
        let path = self.directory()?.join("probe");
        let result = fs::write(&path, [0; 4096]);
        let _ = fs::remove_file(&path);
        result.map_err(|error| StoreError::host(&path, &error))
    }

    pub(super) fn forget(&mut self, hash: &str) {
        if let Some(Ok(path)) = self.paths.remove(hash) {
            remove(&path);
        }
    }

    /// Returns whether the bundle is not stored on this host.
    pub(super) fn is_missing(&self, hash: &str) -> bool {
        !matches!(self.paths.get(hash), Some(Ok(_)))
    }

    /// The directory of bundles; created if necessary.
    pub(super) fn directory(&mut self) -> StoredPath {
        match &self.directory {
            Some(directory) if directory.path().is_dir() => Ok(directory.path().into()),
            _ => {
                let directory = CodeDirectory::create().map_err(|error| StoreError::Host(error.to_string()))?;
                // The old directory was removed together with its content.
                self.paths.clear();
                Ok(self.directory.insert(directory).path().into())
            }
        }
    }

    /// Appends to a file of values, which their reader removes; returns its path.
    pub(super) fn store_values(&mut self, name: &str, is_first: bool, bytes: &[Bytes]) -> StoredPath {
        let path = self.directory()?.join(name);
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().append(true).create_new(is_first).mode(0o600).open(&path)?;
            bytes.iter().try_for_each(|bytes| file.write_all(bytes))
        };
        if is_first {
            let _ = fs::remove_file(&path);
        }
        write().map_err(|error| StoreError::host(&path, &error))?;
        Ok(path)
    }

    pub(super) fn delete_values(&mut self, name: &str) {
        if let Some(directory) = &self.directory {
            let _ = fs::remove_file(directory.path().join(name));
        }
    }

    pub(super) fn record(&mut self, hash: String, path: StoredPath) {
        if let Err(why) = &path {
            tracing::warn!(hash, "cannot write the code of a map: {why}");
        }
        self.paths.insert(hash, path);
    }
}

/// Writes the files of a bundle below `directory` after checking its hash; returns the directory that contains them.
pub(super) fn write(directory: &Path, hash: &str, content: Bytes) -> Result<PathBuf, StoreError> {
    let bundle = Bundle::from(content);
    if bundle.hash != hash {
        return Err(StoreError::Host(format!("the received bundle does not have the hash {hash}")));
    }
    let files = bundle.files().map_err(|error| StoreError::Bundle(error.to_string()))?;
    // Short, because sockets of child processes may be created below it, and their tracebacks contain it.
    let whole = directory.join(hash.get(..16).unwrap_or(hash));
    let part = directory.join(format!("{hash}.part"));
    let write_files = || -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(&part)?;
        for file in &files {
            let path = part.join(&file.path);
            if let Some(above) = path.parent() {
                DirBuilder::new().mode(0o700).recursive(true).create(above)?;
            }
            let mode = if file.executable { 0o700 } else { 0o600 };
            let mut options = OpenOptions::new();
            options
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&path)?
                .write_all(&file.content)?;
        }
        fs::rename(&part, &whole)
    };
    match write_files() {
        Ok(()) => Ok(whole),
        Err(error) => {
            remove(&part);
            let why = format!("{}: {error}", directory.display());
            Err(if is_name_error(&error) {
                StoreError::Bundle(why)
            } else {
                StoreError::Host(why)
            })
        }
    }
}

/// Returns whether the error is due to the file names, and would occur on any host.
fn is_name_error(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, InvalidFilename, InvalidInput, IsADirectory, NotADirectory};
    matches!(
        error.kind(),
        AlreadyExists | InvalidFilename | InvalidInput | IsADirectory | NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::bundle::File;
    use std::os::unix::fs::PermissionsExt;

    fn bundle() -> Bundle {
        let file = |path: &str| File {
            path: path.into(),
            executable: path.ends_with("sh"),
            content: Bytes::from_static(b"x = 1\n"),
        };
        Bundle::of([file("a.py"), file("pkg/sub/b.py"), file("run.sh")])
    }

    #[test]
    fn a_bundle_is_private_and_removed_with_its_engine() {
        let mut bundles = BundleStore::default();
        let bundle = bundle();
        let directory = bundles.directory().unwrap();
        let place = write(&directory, &bundle.hash, bundle.content.clone()).unwrap();
        bundles.record(bundle.hash.clone(), Ok(place.clone()));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&place)), (0o700, 0o700));
        assert_eq!((mode(&place.join("pkg/sub/b.py")), mode(&place.join("run.sh"))), (0o600, 0o700));
        assert_eq!(
            (bundles.path(&bundle.hash), bundles.directory().unwrap()),
            (Ok(place.clone()), directory.clone())
        );
        bundles.forget(&bundle.hash);
        assert!(bundles.is_missing(&bundle.hash) && !place.exists());
        drop(bundles);
        assert!(!directory.exists());
    }

    #[test]
    fn an_invalid_bundle_is_rejected_and_leaves_no_files() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = bundle();
        let mut other = bundle.content.to_vec();
        *other.last_mut().unwrap() = b'!';
        assert!(matches!(
            write(directory.path(), &bundle.hash, other.into()),
            Err(StoreError::Host(_))
        ));
        let clash = Bundle::of([("a", "1"), ("a/b", "2")].map(|(path, content)| File {
            path: path.into(),
            executable: false,
            content: content.into(),
        }));
        assert!(matches!(
            write(directory.path(), &clash.hash, clash.content.clone()),
            Err(StoreError::Bundle(_))
        ));
        let gone = write(&directory.path().join("gone"), &bundle.hash, bundle.content.clone());
        assert!(matches!(gone, Err(StoreError::Host(_))));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
