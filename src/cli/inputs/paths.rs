//! The names that a pattern matches, as in a shell: sorted, and a leading dot is matched only by a dot. The crate `glob` matches
//! single names; the directory walk is our own, because that of the crate silently skips names that are not UTF-8.
use crate::cli::CommandError;
use glob::{MatchOptions, Pattern};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

pub(super) fn matching(pattern: &str) -> Result<Vec<String>, CommandError> {
    Pattern::new(pattern).map_err(|e| CommandError::usage(format!("--glob {pattern} is not a valid pattern: {e}")))?;
    let (root, relative) = match pattern.strip_prefix('/') {
        Some(relative) => ("/", relative),
        None => ("", pattern),
    };
    let parts: Vec<&str> = relative.split('/').filter(|part| !part.is_empty()).collect();
    let mut walk = Walk {
        pattern,
        directories_only: pattern.ends_with('/'),
        found: Vec::new(),
    };
    walk.go(Path::new(root), &parts)?;
    if walk.found.is_empty() {
        return Err(CommandError::usage(format!("--glob {pattern} matches nothing"))
            .hint("quote the pattern, so that the shell does not expand it"));
    }
    walk.found.sort();
    walk.found.dedup();
    Ok(walk.found)
}

struct Walk<'a> {
    pattern: &'a str,
    directories_only: bool,
    found: Vec<String>,
}

impl Walk<'_> {
    /// All that these parts match below a directory.
    fn go(&mut self, base: &Path, parts: &[&str]) -> Result<(), CommandError> {
        let Some((part, rest)) = parts.split_first() else { return Ok(()) };
        match *part {
            "**" => {
                // Zero or more directories; links are not followed.
                self.go(base, rest)?;
                for child in self.children(base, "*", true)? {
                    if fs::symlink_metadata(&child).is_ok_and(|facts| facts.is_dir()) {
                        if rest.is_empty() {
                            self.take(&child)?;
                        }
                        self.go(&child, parts)?;
                    }
                }
                Ok(())
            }
            part if part.contains(['*', '?', '[']) => {
                for child in self.children(base, part, !rest.is_empty())? {
                    self.step(&child, rest)?;
                }
                Ok(())
            }
            part => self.step(&base.join(part), rest),
        }
    }

    fn step(&mut self, path: &Path, rest: &[&str]) -> Result<(), CommandError> {
        match rest.is_empty() {
            true if self.directories_only && !path.is_dir() => Ok(()),
            true if fs::symlink_metadata(path).is_ok() => self.take(path),
            true => Ok(()),
            false => self.go(path, rest),
        }
    }

    fn take(&mut self, path: &Path) -> Result<(), CommandError> {
        let text = path.to_str().ok_or_else(|| self.not_utf8(path))?;
        self.found.push(text.to_string());
        Ok(())
    }

    /// What one part matches in a directory.
    fn children(&self, base: &Path, part: &str, directories_only: bool) -> Result<Vec<PathBuf>, CommandError> {
        let one = Pattern::new(part).map_err(|e| CommandError::usage(format!("--glob {} is not a valid pattern: {e}", self.pattern)))?;
        let folder = if base.as_os_str().is_empty() { Path::new(".") } else { base };
        let failed = |e: io::Error| {
            let folder = folder.display();
            CommandError::environment(format!("--glob {} cannot read {folder}: {e}", self.pattern))
        };
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut children = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let path = base.join(&name);
            // In a name that is not UTF-8, each invalid byte counts as one character.
            if !one.matches_with(&name.to_string_lossy(), OPTIONS) || (directories_only && !path.is_dir()) {
                continue;
            }
            if name.to_str().is_none() {
                return Err(self.not_utf8(&path));
            }
            children.push(path);
        }
        Ok(children)
    }

    fn not_utf8(&self, path: &Path) -> CommandError {
        let name = path.as_os_str().as_bytes().escape_ascii();
        let text = format!("--glob {} matches \"{name}\", a name that is not UTF-8", self.pattern);
        CommandError::usage(text).hint("rename it: inputs are text")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn globs_match_like_in_a_shell_and_drop_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["sub", "other", ".hidden"] {
            std::fs::create_dir(at(folder)).unwrap();
        }
        for file in ["b.txt", "a.txt", ".#a.txt", "sub/c.txt", ".hidden/d.txt"] {
            std::fs::write(at(file), "").unwrap();
        }
        let found = |pattern: &str| -> Result<Vec<String>, String> {
            let prefix = format!("{}/", dir.path().display());
            let names = matching(&format!("{prefix}{pattern}")).map_err(|e| e.render(false))?;
            Ok(names.iter().map(|name| name.replace(&prefix, "")).collect())
        };
        assert_eq!(found("*.txt").unwrap(), ["a.txt", "b.txt"]);
        assert_eq!(found("**/*.txt").unwrap(), ["a.txt", "b.txt", "sub/c.txt"]);
        assert_eq!(found(".h*/*.txt").unwrap(), [".hidden/d.txt"]);
        assert_eq!(found(".#*").unwrap(), [".#a.txt"]);
        assert!(found("*.csv").unwrap_err().contains("matches nothing"));
        let latin = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        std::fs::write(at("other").join(latin(b"caf\xe9.txt")), "").unwrap();
        assert_eq!(found("*.txt").unwrap(), ["a.txt", "b.txt"], "it is not among these");
        assert_eq!(found("sub/*").unwrap(), ["sub/c.txt"]);
        for pattern in ["other/*.txt", "*/*.txt", "**/*.txt", "other/caf?.txt"] {
            let error = found(pattern).unwrap_err();
            assert!(error.contains("caf\\xe9.txt") && error.contains("not UTF-8"), "{pattern} {error}");
        }
        std::fs::create_dir(dir.path().join(latin(b"d\xe9"))).unwrap();
        assert!(found("d*/*.txt").unwrap_err().contains("d\\xe9"));
        assert_eq!(found("a*.txt").unwrap(), ["a.txt"]);
    }
}
