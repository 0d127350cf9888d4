//! The code of maps on this host: each bundle is written once, into a directory that is this engine's alone and that it removes at
//! its end. No other user can write there, and nobody can know its name beforehand.
use super::code_directory::{CodeDirectory, remove};
use crate::model::bundle::Bundle;
use bytes::Bytes;
use std::collections::HashMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bundles from this size on are written by another thread.
pub const LARGE: usize = 1 << 20;

/// Where a bundle is, or why it is not there.
type Place = Result<PathBuf, String>;

#[derive(Debug, Default)]
pub struct Bundles {
    /// Made when the first bundle comes.
    directory: Option<CodeDirectory>,
    places: HashMap<String, Place>,
}

/// Why a bundle is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No host could write it: the fault of those who made it.
    Bundle(String),
    /// This host, or the way to it: another one may have it.
    Host(String),
}

impl Bundles {
    /// Where a bundle with this hash is.
    pub fn place(&self, hash: &str) -> Place {
        match self.places.get(hash) {
            Some(place) => place.clone(),
            None => Err("it has not come to this engine".into()),
        }
    }

    /// Whether tasks that need it can run here, as far as this host is concerned; if not, why.
    pub fn check(&mut self, hash: &str) -> Result<(), String> {
        match self.places.get(hash) {
            Some(Ok(place)) if !place.is_dir() => {
                let why = format!("{} was removed", place.display());
                self.places.remove(hash);
                Err(why)
            }
            Some(_) => Ok(()),
            None => Err("it has not come".into()),
        }
    }

    /// Whether files can be written.
    pub fn probe(&mut self) -> Result<(), String> {
        let path = self.directory()?.join("probe");
        let written = fs::write(&path, [0; 4096]);
        let _ = fs::remove_file(&path);
        written.map_err(|error| format!("{}: {error}", path.display()))
    }

    pub fn forget(&mut self, hash: &str) {
        if let Some(Ok(path)) = self.places.remove(hash) {
            remove(&path);
        }
    }

    /// Whether it is not here yet.
    pub fn is_missing(&self, hash: &str) -> bool {
        !matches!(self.places.get(hash), Some(Ok(_)))
    }

    /// Where to write the next one.
    pub fn directory(&mut self) -> Place {
        match &self.directory {
            Some(directory) if directory.path().is_dir() => Ok(directory.path().into()),
            _ => {
                let made = CodeDirectory::make()?;
                // Whoever removed the old one removed what was in it.
                self.places.clear();
                Ok(self.directory.insert(made).path().into())
            }
        }
    }

    /// Adds to a file of values, which their reader removes. Where it is.
    pub fn keep_values(&mut self, name: &str, is_first: bool, bytes: &[Bytes]) -> Place {
        let path = self.directory()?.join(name);
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().append(true).create_new(is_first).mode(0o600).open(&path)?;
            bytes.iter().try_for_each(|bytes| file.write_all(bytes))
        };
        if is_first {
            let _ = fs::remove_file(&path);
        }
        write().map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }

    pub fn forget_values(&mut self, name: &str) {
        if let Some(directory) = &self.directory {
            let _ = fs::remove_file(directory.path().join(name));
        }
    }

    pub fn written(&mut self, hash: String, place: Place) {
        if let Err(why) = &place {
            tracing::warn!(hash, "the code of a map cannot be written: {why}");
        }
        self.places.insert(hash, place);
    }
}

/// Writes the files of a bundle below `directory`, if it is the bundle of this hash; the directory that then has them.
pub fn write(directory: &Path, hash: &str, content: Bytes) -> Result<PathBuf, Fault> {
    let bundle = Bundle::from(content);
    if bundle.hash != hash {
        return Err(Fault::Host(format!("what came is not the bundle {hash}")));
    }
    let files = bundle.files().map_err(Fault::Bundle)?;
    // Short: sockets of child processes may lie below it, and it is in every traceback of theirs.
    let whole = directory.join(hash.get(..16).unwrap_or(hash));
    let part = directory.join(format!("{hash}.part"));
    let written = || -> io::Result<()> {
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
    match written() {
        Ok(()) => Ok(whole),
        Err(error) => {
            remove(&part);
            let why = format!("{}: {error}", directory.display());
            Err(if is_of_names(&error) {
                Fault::Bundle(why)
            } else {
                Fault::Host(why)
            })
        }
    }
}

/// Whether no other disk would take files of these names either.
fn is_of_names(error: &io::Error) -> bool {
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
    fn a_bundle_is_written_where_nobody_else_looks_and_goes_with_its_engine() {
        let mut bundles = Bundles::default();
        let bundle = bundle();
        let directory = bundles.directory().unwrap();
        let place = write(&directory, &bundle.hash, bundle.content.clone()).unwrap();
        bundles.written(bundle.hash.clone(), Ok(place.clone()));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&place)), (0o700, 0o700));
        assert_eq!((mode(&place.join("pkg/sub/b.py")), mode(&place.join("run.sh"))), (0o600, 0o700));
        assert_eq!(
            (bundles.place(&bundle.hash), bundles.directory().unwrap()),
            (Ok(place.clone()), directory.clone())
        );
        bundles.forget(&bundle.hash);
        assert!(bundles.is_missing(&bundle.hash) && !place.exists());
        drop(bundles);
        assert!(!directory.exists());
    }

    #[test]
    fn what_is_not_the_bundle_is_refused_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = bundle();
        let mut other = bundle.content.to_vec();
        *other.last_mut().unwrap() = b'!';
        assert!(matches!(write(directory.path(), &bundle.hash, other.into()), Err(Fault::Host(_))));
        let clash = Bundle::of([("a", "1"), ("a/b", "2")].map(|(path, content)| File {
            path: path.into(),
            executable: false,
            content: content.into(),
        }));
        assert!(matches!(
            write(directory.path(), &clash.hash, clash.content.clone()),
            Err(Fault::Bundle(_))
        ));
        let gone = write(&directory.path().join("gone"), &bundle.hash, bundle.content.clone());
        assert!(matches!(gone, Err(Fault::Host(_))));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
