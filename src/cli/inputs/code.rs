//! The code sent to engines: a Python file, the local modules that it imports, and the files of `--with`.
//!
//! Modules are searched as Python and the worker would: in the directory of the file and in the directory from which the map is
//! submitted, following import statements ([`imports`]) recursively. In the bundle, modules are relative to one directory, which
//! is first in `sys.path` on the engine.
mod imports;
mod with;

use crate::cli::CommandError;
use crate::model::bundle::{Bundle, File, is_relative};
use crate::model::definition::BundleRef;
use crate::model::stdlib;
use bytes::Bytes;
pub(crate) use imports::declared_encoding;
use imports::{Import, imports};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The maximum number of files in a bundle,
const MAX_FILES: usize = 10_000;
/// and their maximum total size in bytes.
const MAX_BYTES: u64 = 256 << 20;

/// Options of commands that send a Python file.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct CodeArgs {
    /// Also send this file or directory to the engines; repeatable
    #[arg(long = "with", value_name = "PATH", help_heading = "Tasks")]
    pub with: Vec<PathBuf>,
}

/// Builds the bundle of a Python file, whose bytes are `source`.
pub(crate) fn bundle(file: &str, source: Bytes, with: &[PathBuf]) -> Result<BundleRef, CommandError> {
    let here =
        std::env::current_dir().map_err(|error| CommandError::environment(format!("cannot determine the working directory: {error}")))?;
    bundle_in(&here, file, source, with)
}

/// The bundle that the same command would create now, in its original directory.
pub(crate) fn bundle_now(named: &BundleRef, directory: Option<&str>) -> Result<BundleRef, CommandError> {
    let file = named.original(&named.entry);
    let here = Path::new(directory.unwrap_or(&named.origin));
    let with: Vec<PathBuf> = named.with.iter().map(PathBuf::from).collect();
    let bundle = bundle_in(here, &file, super::function::source(&file)?, &with)?;
    Ok(BundleRef {
        name: named.name.clone(),
        ..bundle
    })
}

fn bundle_in(here: &Path, file: &str, source: Bytes, with: &[PathBuf]) -> Result<BundleRef, CommandError> {
    let path = real_file(&here.join(file));
    let mut found = Collector::new(&path, &source, here)?;
    let entry = found.entry.clone();
    found.add_python(&entry, &path, Some(source))?;
    for path in with {
        found.add_with(&here.join(path))?;
    }
    found.follow_imports()?;
    found.into_bundle(file)
}

/// The path of a script as Python resolves it: links followed, without `..`.
fn real_file(path: &Path) -> PathBuf {
    let path = if path.is_symlink() {
        path.canonicalize().unwrap_or(path.into())
    } else {
        path.to_path_buf()
    };
    clean(&path)
}

/// Without `.` and `..`.
fn clean(path: &Path) -> PathBuf {
    match path.components().any(|part| part == std::path::Component::ParentDir) {
        true => path.canonicalize().unwrap_or_else(|_| path.to_path_buf()),
        false => path.components().collect(),
    }
}

/// The source of a file of the bundle, before it is read.
struct Source {
    path: PathBuf,
    size: u64,
    executable: bool,
    content: Option<Bytes>,
}

struct Collector {
    /// The directories to search for modules.
    roots: Vec<PathBuf>,
    /// The path of the script in the bundle.
    entry: String,
    /// A script with the name of a standard library module: `import` refers to that module.
    hidden: Option<PathBuf>,
    files: BTreeMap<String, Source>,
    /// Python files whose imports have not been processed.
    unread: VecDeque<String>,
    listings: HashMap<PathBuf, Vec<String>>,
    moved: BTreeMap<String, String>,
    with: Vec<String>,
}

impl Collector {
    fn new(path: &Path, source: &[u8], here: &Path) -> Result<Collector, CommandError> {
        let name = |path: &Path| match path.file_name().and_then(|name| name.to_str()) {
            Some(name) => Ok(name.to_string()),
            None => Err(CommandError::usage(format!("the name of {} is not UTF-8 text", path.display()))),
        };
        let mut root = path.parent().unwrap_or(Path::new("/")).to_path_buf();
        let mut entry = name(path)?;
        let is_package = |directory: &Path| directory.join("__init__.py").is_file();
        let (mut moved, mut hidden) = (BTreeMap::new(), None);
        if is_package(&root) && imports(source).iter().any(|import| import.level > 0) {
            // A module of a package needs its package.
            while is_package(&root) {
                entry = format!("{}/{entry}", name(&root)?);
                root = root.parent().unwrap_or(Path::new("/")).to_path_buf();
            }
        } else {
            let stem = entry.strip_suffix(".py").unwrap_or(&entry);
            if stdlib::conflicts_with_stdlib(stem) || !entry.ends_with(".py") {
                let changed = format!("pcluster_{}.py", stem.replace('.', "_"));
                moved.insert(changed.clone(), text(path)?);
                (entry, hidden) = (changed, Some(path.to_path_buf()));
            }
        }
        let mut roots = vec![root];
        if !roots.iter().any(|root| root == here) {
            roots.push(here.to_path_buf());
        }
        Ok(Collector {
            roots,
            entry,
            hidden,
            files: BTreeMap::new(),
            unread: VecDeque::new(),
            listings: HashMap::new(),
            moved,
            with: Vec::new(),
        })
    }

    /// Adds a file to the bundle; its content is read later, unless given.
    fn add(&mut self, at: &str, path: &Path, content: Option<Bytes>) -> Result<bool, CommandError> {
        if !is_relative(at) {
            return Err(CommandError::internal(format!("{at:?} is not a valid path in a bundle")));
        }
        if let Some(there) = self.files.get(at) {
            let same = there.path == path || there.path.canonicalize().ok() == path.canonicalize().ok();
            return match same {
                true => Ok(false),
                false => Err(CommandError::usage(format!(
                    "{} and {} would have the same path {at} on the engines",
                    there.path.display(),
                    path.display()
                ))
                .hint("put one of them into a separate directory, and send that with --with")),
            };
        }
        let facts = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
        let source = Source {
            path: path.to_path_buf(),
            size: content.as_ref().map_or(facts.len(), |content| content.len() as u64),
            executable: facts.permissions().mode() & 0o111 != 0,
            content,
        };
        self.note_origin(at, path)?;
        self.files.insert(at.into(), source);
        if self.files.len() > MAX_FILES {
            return Err(self.too_large(&format!("more than {MAX_FILES} files")));
        }
        Ok(true)
    }

    fn add_python(&mut self, at: &str, path: &Path, content: Option<Bytes>) -> Result<(), CommandError> {
        let content = match content {
            Some(content) => content,
            None if self.files.contains_key(at) => Bytes::new(),
            None => fs::read(path).map_err(|error| unreadable(path, &error))?.into(),
        };
        if self.add(at, path, Some(content))? {
            self.unread.push_back(at.into());
        }
        Ok(())
    }

    /// Records the origin of a file, unless its path implies it.
    fn note_origin(&mut self, at: &str, path: &Path) -> Result<(), CommandError> {
        let is_expected = self.roots.first().is_some_and(|root| root.join(at) == path);
        let first = at.split('/').next().unwrap_or(at);
        if is_expected || self.moved.contains_key(first) || self.moved.contains_key(at) {
            return Ok(());
        }
        // The same for all files of its directory.
        let (key, from) = match at.split_once('/') {
            Some((first, rest)) if path.ends_with(rest) => {
                let ups = rest.split('/').count();
                (first, path.ancestors().nth(ups).unwrap_or(path))
            }
            _ => (at, path),
        };
        let taken = self.files.keys().any(|file| file.starts_with(&format!("{key}/")));
        let (key, from) = if taken { (at, path) } else { (key, from) };
        self.moved.insert(key.into(), text(from)?);
        Ok(())
    }

    fn follow_imports(&mut self) -> Result<(), CommandError> {
        while let Some(at) = self.unread.pop_front() {
            let Some(content) = self.files.get(&at).and_then(|file| file.content.clone()) else {
                continue;
            };
            let mut package: Vec<String> = at.split('/').map(String::from).collect();
            package.pop();
            for import in imports(&content) {
                self.follow(&import, &package)?;
            }
        }
        Ok(())
    }

    /// Finds what one statement imports; what is not found is expected on the engines.
    fn follow(&mut self, import: &Import, package: &[String]) -> Result<(), CommandError> {
        let mut module: Vec<String> = match import.level {
            0 => Vec::new(),
            level if level - 1 < package.len() => package[..package.len() - (level - 1)].to_vec(),
            _ => return Ok(()),
        };
        module.extend(import.module.split('.').filter(|part| !part.is_empty()).map(String::from));
        let Some(directories) = self.module(&module)? else { return Ok(()) };
        for name in &import.names {
            let submodules = match name.as_str() {
                "*" => self.python_files(&directories),
                name => vec![name.to_string()],
            };
            for name in submodules {
                let submodule: Vec<String> = module.iter().cloned().chain([name]).collect();
                self.module(&submodule)?;
            }
        }
        Ok(())
    }

    /// Adds a module with its parent packages. For a package, returns the directories of its modules.
    fn module(&mut self, parts: &[String]) -> Result<Option<Vec<PathBuf>>, CommandError> {
        let mut directories = self.roots.clone();
        let mut at = String::new();
        for part in parts {
            if part.contains('/') || !is_relative(part) {
                return Ok(None);
            }
            at = if at.is_empty() { part.clone() } else { format!("{at}/{part}") };
            let mut namespaces = Vec::new();
            let mut package = None;
            for directory in &directories {
                let below = directory.join(part);
                let init = below.join("__init__.py");
                if init.is_file() {
                    self.add_python(&format!("{at}/__init__.py"), &init, None)?;
                    package = Some(below);
                    break;
                }
                let extensions = self.extensions(directory, part);
                let plain = directory.join(format!("{part}.py"));
                if !extensions.is_empty() || (plain.is_file() && self.hidden.as_ref() != Some(&plain)) {
                    let prefix = at[..at.len() - part.len()].to_string();
                    for name in extensions {
                        self.add(&format!("{prefix}{name}"), &directory.join(&name), None)?;
                    }
                    if plain.is_file() && plain != self.entry_path() {
                        self.add_python(&format!("{at}.py"), &plain, None)?;
                    }
                    return Ok(None);
                }
                if below.is_dir() {
                    namespaces.push(below);
                }
            }
            directories = match package {
                Some(package) => vec![package],
                None if namespaces.is_empty() => return Ok(None),
                None => namespaces,
            };
        }
        Ok(Some(directories))
    }

    fn entry_path(&self) -> PathBuf {
        self.files.get(&self.entry).map(|file| file.path.clone()).unwrap_or_default()
    }

    /// Compiled modules of this name.
    fn extensions(&mut self, directory: &Path, name: &str) -> Vec<String> {
        let is_one = |file: &&String| {
            let rest = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
            rest.is_some_and(|rest| rest == "so" || rest.ends_with(".so"))
        };
        self.listing(directory).iter().filter(is_one).cloned().collect()
    }

    fn python_files(&mut self, directories: &[PathBuf]) -> Vec<String> {
        let mut found = Vec::new();
        for directory in directories {
            let names = self.listing(directory).iter();
            found.extend(names.filter_map(|name| name.strip_suffix(".py")).map(String::from));
        }
        found.retain(|name| name != "__init__");
        found
    }

    /// The names of the compiled modules and Python files in a directory.
    fn listing(&mut self, directory: &Path) -> &[String] {
        self.listings.entry(directory.to_path_buf()).or_insert_with(|| {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
            names.retain(|name| name.ends_with(".so") || name.ends_with(".py"));
            names.sort();
            names
        })
    }

    fn into_bundle(mut self, name: &str) -> Result<BundleRef, CommandError> {
        if self.files.values().map(|file| file.size).sum::<u64>() > MAX_BYTES {
            return Err(self.too_large(&format!("more than {} MiB", MAX_BYTES >> 20)));
        }
        let mut files = Vec::with_capacity(self.files.len());
        for (path, source) in std::mem::take(&mut self.files) {
            let content = match source.content {
                Some(content) => content,
                None => fs::read(&source.path).map_err(|error| unreadable(&source.path, &error))?.into(),
            };
            files.push(File {
                path,
                executable: source.executable,
                content,
            });
        }
        let bundle = Bundle::of(files);
        let root = self.roots.first().map(PathBuf::as_path).unwrap_or(Path::new("/"));
        Ok(BundleRef {
            hash: bundle.hash.clone(),
            name: name.into(),
            entry: self.entry,
            origin: text(root)?,
            moved: self.moved,
            with: self.with,
            content: Some(Arc::new(bundle)),
        })
    }

    fn too_large(&self, what: &str) -> CommandError {
        let mut files: Vec<&Source> = self.files.values().collect();
        files.sort_by_key(|file| std::cmp::Reverse(file.size));
        let biggest = files
            .iter()
            .take(3)
            .map(|file| format!("{} ({} KiB)", file.path.display(), file.size.div_ceil(1024)));
        CommandError::usage(format!(
            "the code has {what}, and all of it is sent to every engine; largest files: {}",
            biggest.collect::<Vec<_>>().join(", ")
        ))
        .hint("send only what is needed with --with, and keep large data on a file system that the engines share")
    }
}

/// A path as text; messages hold only UTF-8.
fn text(path: &Path) -> Result<String, CommandError> {
    path.to_str()
        .map(String::from)
        .ok_or_else(|| CommandError::usage(format!("cannot send {}: its name is not UTF-8 text", path.display())))
}

fn unreadable(path: &Path, error: &std::io::Error) -> CommandError {
    CommandError::usage(format!("cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
