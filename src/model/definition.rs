//! What a map runs, and how. It travels once to the controller and once to each engine; a task carries only its input.
use super::MapId;
use super::bundle::{Bundle, File, is_relative};
use super::stdlib;
use super::targets::Targets;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The work that every task of a map does on its own input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Work {
    /// A Python function. A task's input is a JSON list (positional arguments) or object (keyword arguments).
    Call {
        /// Where the function is: in files of the user's, which travel, or in a module that the engine's Python imports.
        from: CallSource,
        function: String,
    },
    /// A command without a shell. `{}` stands for the whole input, `{1}` `{2}` … for its columns, in any word;
    /// without any, the input is appended. A task's input is a JSON list of strings.
    Command { argv: Vec<String> },
    /// Python source run in the engine's namespace. A task's input is not looked at. The value is that of a last expression.
    Execute {
        code: String,
        filename: String,
        /// Of a script: the file and what it imports. Its entry is what is run, in the place of `code`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bundle: Option<Box<BundleRef>>,
    },
    /// Sets names in the engine's namespace. A task's input is a JSON object: name to value.
    Push,
    /// Reads names from the engine's namespace. A task's input is a JSON list of names; its value is an object.
    Pull,
    /// Not ours to run: the requests of one ipyparallel client, kept as one submission.
    Client {
        /// Its CURVE public key, by which it is known again when it reconnects.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        curve_key: Option<String>,
    },
}

/// [`Work::kind`] of submissions of ipyparallel clients.
pub const CLIENT_KIND: &str = "client";

impl Work {
    pub fn kind(&self) -> &'static str {
        match self {
            Work::Call { .. } => "call",
            Work::Command { .. } => "command",
            Work::Execute { .. } => "execute",
            Work::Push => "push",
            Work::Pull => "pull",
            Work::Client { .. } => CLIENT_KIND,
        }
    }
    /// What to call a map that was given no name.
    pub fn default_name(&self) -> String {
        match self {
            Work::Call { from, function, .. } => format!("{}:{function}", from.name()),
            Work::Command { argv } => argv.join(" "),
            Work::Execute { filename, .. } => filename.clone(),
            other => other.kind().to_string(),
        }
    }
    /// The files that travel with it.
    pub fn bundle(&self) -> Option<&BundleRef> {
        match self {
            Work::Call {
                from: CallSource::Bundle(bundle),
                ..
            } => Some(bundle),
            Work::Execute { bundle, .. } => bundle.as_deref(),
            _ => None,
        }
    }
    pub fn bundle_mut(&mut self) -> Option<&mut BundleRef> {
        match self {
            Work::Call {
                from: CallSource::Bundle(bundle),
                ..
            } => Some(bundle),
            Work::Execute { bundle, .. } => bundle.as_deref_mut(),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallSource {
    /// A file and the modules beside it that it imports.
    Bundle(Box<BundleRef>),
    Module {
        module: String,
    },
    /// Of maps of pcluster 0.1: one file as text. Read as a bundle of one file ([`MapDefinition::with_bundle`]).
    File {
        name: String,
        text: String,
    },
}

impl CallSource {
    /// As the user wrote it.
    pub fn name(&self) -> &str {
        match self {
            CallSource::Bundle(bundle) => &bundle.name,
            CallSource::Module { module } => module,
            CallSource::File { name, .. } => name,
        }
    }
}

/// Which bundle, and where its files come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BundleRef {
    pub hash: String,
    /// The file as the user spelled it.
    pub name: String,
    /// Its path in the bundle.
    pub entry: String,
    /// The directory that the files come from, as an absolute path on the host of the client.
    pub origin: String,
    /// Files and directories that come from elsewhere: path in the bundle to absolute path.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub moved: BTreeMap<String, String>,
    /// What was added with `--with`, as absolute paths.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub with: Vec<String>,
    /// The bundle itself, where it is at hand. It travels beside the definition.
    #[serde(skip)]
    pub content: Option<Arc<Bundle>>,
}

impl BundleRef {
    /// Where a file of the bundle comes from.
    pub fn original(&self, path: &str) -> String {
        if let Some(from) = self.moved.get(path) {
            return from.clone();
        }
        match path.split_once('/').and_then(|(first, rest)| Some((self.moved.get(first)?, rest))) {
            Some((from, rest)) => format!("{from}/{rest}"),
            None => format!("{}/{path}", self.origin),
        }
    }

    /// With the files of another bundle that this one does not have.
    pub fn add(&mut self, other: &BundleRef) {
        let files = |named: &BundleRef| Some(named.content.as_ref()?.files().unwrap_or_default());
        let (Some(own), Some(others)) = (files(self), files(other)) else {
            return;
        };
        let others = others.into_iter().filter(|file| own.iter().all(|own| own.path != file.path));
        let others: Vec<File> = others.collect();
        for file in &others {
            let original = other.original(&file.path);
            if original != self.original(&file.path) {
                self.moved.insert(file.path.clone(), original);
            }
        }
        let bundle = Bundle::of(others.into_iter().chain(own));
        self.hash = bundle.hash.clone();
        self.content = Some(Arc::new(bundle));
    }

    /// A file that is not on the disk.
    fn of_text(name: &str, text: &str) -> BundleRef {
        let last = name.rsplit('/').next().unwrap_or_default();
        let stem = last.strip_suffix(".py").unwrap_or(last);
        let entry = match is_relative(last) && !stem.is_empty() {
            true if stdlib::is_taken(stem) => format!("pcluster_{}.py", stem.replace('.', "_")),
            true => format!("{stem}.py"),
            false => "pcluster_file.py".to_string(),
        };
        let bundle = Bundle::of([File {
            path: entry.clone(),
            executable: false,
            content: Bytes::copy_from_slice(text.as_bytes()),
        }]);
        BundleRef {
            hash: bundle.hash.clone(),
            name: name.into(),
            moved: BTreeMap::from([(entry.clone(), name.to_string())]),
            entry,
            content: Some(Arc::new(bundle)),
            ..BundleRef::default()
        }
    }
}

/// How a map's tasks are run. Times are in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MapOptions {
    pub name: Option<String>,
    pub label: Option<String>,
    /// A task that runs longer is stopped and ends as `timeout`.
    pub timeout_s: Option<f64>,
    /// A task whose processes have more resident memory together, in bytes, is killed; that counts as a crash.
    pub mem_bytes: Option<u64>,
    /// How often a task whose function failed is run again.
    pub retries: u32,
    /// How often a task whose worker or engine died is run again.
    pub max_crashes: u32,
    /// Working directory on the engine.
    pub cwd: Option<String>,
    /// Where the map was submitted from: the working directory on engines that have it, unless `cwd` is given.
    pub directory: Option<String>,
    pub env: BTreeMap<String, String>,
    /// Start when that map has finished.
    pub after: Option<MapId>,
    /// The values of that map are reduced: the function takes two of them, and a task's input is a list of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reduces: Option<Reduces>,
    /// None: balanced. Some: task i goes to the i-th of these engines and nowhere else.
    pub targets: Option<Targets>,
    /// A Python function is called in the engine's interactive worker, whose state stays (`pcluster apply`), and not in a worker of
    /// this map's own.
    #[serde(skip_serializing_if = "is_false")]
    pub interactive: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Default for MapOptions {
    fn default() -> Self {
        MapOptions {
            name: None,
            label: None,
            timeout_s: None,
            mem_bytes: None,
            retries: 0,
            max_crashes: 3,
            cwd: None,
            directory: None,
            env: BTreeMap::new(),
            after: None,
            reduces: None,
            targets: None,
            interactive: false,
        }
    }
}

/// A map whose values another one folds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reduces {
    pub map: MapId,
    /// What it ran: values may be of classes that are defined there.
    pub work: Work,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MapDefinition {
    pub work: Work,
    #[serde(default)]
    pub options: MapOptions,
}

impl MapDefinition {
    /// The files that travel with it: the work's, or for a module's function that reduces, those of the map whose values it gets.
    pub fn bundle(&self) -> Option<&BundleRef> {
        let reduced = || self.options.reduces.as_ref()?.work.bundle();
        self.work.bundle().or_else(reduced)
    }
    pub fn bundle_mut(&mut self) -> Option<&mut BundleRef> {
        match self.work.bundle().is_some() {
            true => self.work.bundle_mut(),
            false => self.options.reduces.as_mut()?.work.bundle_mut(),
        }
    }
    /// With files of older versions as bundles.
    pub fn with_bundle(mut self) -> MapDefinition {
        if let Work::Call { from, .. } = &mut self.work
            && let CallSource::File { name, text } = from
        {
            *from = CallSource::Bundle(Box::new(BundleRef::of_text(name, text)));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_an_older_version_is_a_bundle_of_one_file() {
        let old = r#"{"work": {"kind": "call", "from": {"file": {"name": "jobs/a.py", "text": "x = 1\n"}}, "function": "f"}}"#;
        let definition = serde_json::from_str::<MapDefinition>(old).unwrap().with_bundle();
        assert_eq!(definition.work.default_name(), "jobs/a.py:f");
        let bundle = definition.work.bundle().unwrap();
        assert_eq!((bundle.entry.as_str(), bundle.moved["a.py"].as_str()), ("a.py", "jobs/a.py"));
        assert_eq!(bundle.content.as_ref().unwrap().files().unwrap()[0].content, "x = 1\n");
        // The content itself never travels in the definition.
        let again: MapDefinition = serde_json::from_str(&serde_json::to_string(&definition).unwrap()).unwrap();
        assert_eq!(again.work.bundle().unwrap().content, None);
        let mut both = bundle.clone();
        both.add(&BundleRef::of_text("jobs/b.py", "y = 2"));
        both.add(&BundleRef::of_text("other/b.py", "y = 3"));
        assert_eq!(both.content.as_ref().unwrap().files().unwrap().len(), 2);
        assert_eq!(
            (both.original("a.py"), both.original("b.py")),
            ("jobs/a.py".into(), "jobs/b.py".into())
        );
        assert_ne!(both.hash, bundle.hash);
        for (name, entry) in [
            ("", "pcluster_file.py"),
            ("a.b.py", "pcluster_a_b.py"),
            ("json.py", "pcluster_json.py"),
            ("x", "x.py"),
            ("/a/..", "pcluster_file.py"),
        ] {
            assert_eq!(BundleRef::of_text(name, "").entry, entry, "{name}");
        }
    }
}
