//! `--with PATH`: files and directories that are not imported.
use super::{Collector, clean, text, unreadable};
use crate::cli::CommandError;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Directories that are never sent.
const EXCLUDED: [&str; 4] = ["__pycache__", ".git", ".hg", ".svn"];

impl Collector {
    /// Adds a file or directory: at its path relative to the script, or else at the top level, under its own name.
    pub(super) fn add_with(&mut self, path: &Path) -> Result<(), CommandError> {
        let path = clean(path);
        if !path.exists() {
            return Err(CommandError::usage(format!("--with: no file or directory {}", path.display())));
        }
        self.with.push(text(&path)?);
        let root = self.roots.first().cloned().unwrap_or_default();
        let at = match path.strip_prefix(&root) {
            Ok(below) => text(below)?,
            Err(_) => text(Path::new(path.file_name().unwrap_or_default()))?,
        };
        if path.is_file() {
            return self.add_any(&at, &path);
        }
        let inside = path.canonicalize().map_err(|error| unreadable(&path, &error))?;
        let mut entered = HashSet::from([inside.clone()]);
        self.walk(&at, &path, &inside, &mut entered)
    }

    fn add_any(&mut self, at: &str, path: &Path) -> Result<(), CommandError> {
        // The script may have another name in the bundle.
        if path == self.entry_path() {
            return Ok(());
        }
        match path.extension().is_some_and(|extension| extension == "py") {
            true => self.add_python(at, path, None),
            false => self.add(at, path, None).map(drop),
        }
    }

    fn walk(&mut self, at: &str, directory: &Path, inside: &Path, entered: &mut HashSet<PathBuf>) -> Result<(), CommandError> {
        let entries = fs::read_dir(directory).map_err(|error| unreadable(directory, &error))?;
        let mut entries: Vec<PathBuf> = entries
            .map(|entry| entry.map(|entry| entry.path()).map_err(|error| unreadable(directory, &error)))
            .collect::<Result<_, _>>()?;
        entries.sort();
        for path in entries {
            let name = text(Path::new(path.file_name().unwrap_or_default()))?;
            if EXCLUDED.contains(&name.as_str()) {
                continue;
            }
            let at = if at.is_empty() { name } else { format!("{at}/{name}") };
            let real = path.canonicalize().map_err(|error| unreadable(&path, &error))?;
            if path.is_symlink() && !real.starts_with(inside) {
                return Err(CommandError::usage(format!(
                    "--with: the link {} points outside the directory, to {}",
                    path.display(),
                    real.display()
                ))
                .hint("send its target with another --with"));
            }
            if real.is_dir() {
                // A link to a parent directory would never end.
                if entered.insert(real.clone()) {
                    self.walk(&at, &path, inside, entered)?;
                    entered.remove(&real);
                }
            } else if real.is_file() {
                self.add_any(&at, &path)?;
            } else {
                return Err(CommandError::usage(format!(
                    "--with: {} is neither a file nor a directory",
                    path.display()
                )));
            }
        }
        Ok(())
    }
}
