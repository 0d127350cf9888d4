//! The definition of a map: what it runs, and with which options. It is sent once to the controller
//! and once to each engine; a task contains only its input.
use super::MapId;
use super::bundle::{Bundle, File, is_relative};
use super::cores::CoreSet;
use super::growth::Growth;
use super::memory::Memory;
use super::resources::{Request, TaskResources};
use super::stdlib;
use super::targets::Targets;
use super::task::Ask;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The work that every task of a map does on its own input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Work {
    /// A Python function. A task's input is a JSON list (positional arguments) or object (keyword
    /// arguments).
    Call {
        /// The function's origin: files of the user that are sent along, or a module that the
        /// engine's Python imports.
        from: CallSource,
        function: String,
    },
    /// A command without a shell. In any word, `{}` stands for the whole input and `{1}` `{2}` …
    /// for its columns; without placeholders, the input is appended. A task's input is a JSON list
    /// of strings.
    Command { argv: Vec<String> },
    /// Python source that runs in the engine's namespace. A task's input is ignored. The value is
    /// that of a trailing expression.
    Execute {
        code: String,
        filename: String,
        /// For a script: the file and its imports. Its entry is run instead of `code`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bundle: Option<Box<BundleRef>>,
    },
    /// Sets names in the engine's namespace. A task's input is a JSON object from name to value.
    Push,
    /// Reads names from the engine's namespace. A task's input is a JSON list of names; its value
    /// is an object.
    Pull,
    /// The requests of one ipyparallel client, kept as one submission. pcluster does not interpret
    /// them.
    Client {
        /// Its CURVE public key, which identifies it when it reconnects.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        curve_key: Option<String>,
    },
}

/// [`Work::kind`] of submissions of ipyparallel clients.
pub(crate) const CLIENT_KIND: &str = "client";

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
    /// A default name for a map without one.
    pub fn default_name(&self) -> String {
        match self {
            Work::Call { from, function, .. } => format!("{}:{function}", from.name()),
            Work::Command { argv } => argv.join(" "),
            Work::Execute { filename, .. } => filename.clone(),
            other => other.kind().to_string(),
        }
    }
    /// The files that are sent along.
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
    /// A file and the adjacent modules that it imports.
    Bundle(Box<BundleRef>),
    Module {
        module: String,
    },
    /// Maps of pcluster 0.1: one file as text. Read as a bundle of one file
    /// ([`MapDefinition::with_bundle`]).
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

/// Identifies a bundle and the origin of its files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BundleRef {
    pub hash: String,
    /// The file as the user spelled it.
    pub name: String,
    /// Its path in the bundle.
    pub entry: String,
    /// The directory of the files, as an absolute path on the client's host.
    pub origin: String,
    /// Files and directories from elsewhere: path in the bundle to absolute path.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub moved: BTreeMap<String, String>,
    /// The files added with `--with`, as absolute paths.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub with: Vec<String>,
    /// The bundle itself, if available. It is sent separately from the definition.
    #[serde(skip)]
    pub content: Option<Arc<Bundle>>,
}

impl BundleRef {
    /// The original path of a file in the bundle.
    pub fn original(&self, path: &str) -> String {
        if let Some(from) = self.moved.get(path) {
            return from.clone();
        }
        match path.split_once('/').and_then(|(first, rest)| Some((self.moved.get(first)?, rest))) {
            Some((from, rest)) => format!("{from}/{rest}"),
            None => format!("{}/{path}", self.origin),
        }
    }

    /// Adds the files of another bundle that this one lacks.
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

    /// A file that does not exist on disk.
    fn of_text(name: &str, text: &str) -> BundleRef {
        let last = name.rsplit('/').next().unwrap_or_default();
        let stem = last.strip_suffix(".py").unwrap_or(last);
        let entry = match is_relative(last) && !stem.is_empty() {
            true if stdlib::conflicts_with_stdlib(stem) => format!("pcluster_{}.py", stem.replace('.', "_")),
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

/// Options for running a map's tasks. Times are in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MapOptions {
    pub name: Option<String>,
    pub label: Option<String>,
    /// A task that runs longer is stopped and ends as `timeout`.
    pub timeout_s: Option<f64>,
    /// A task whose processes use more resident memory in total, in bytes, is killed; that counts
    /// as a crash.
    pub mem_bytes: Option<u64>,
    /// What each task needs of its node, besides memory.
    #[serde(skip_serializing_if = "TaskResources::is_default")]
    pub resources: TaskResources,
    /// Accept the map even if no node has these resources now.
    #[serde(skip_serializing_if = "is_false")]
    pub wait_for_resources: bool,
    /// How long a task is expected to take at most, in seconds: engines whose job ends earlier do not get it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_s: Option<f64>,
    /// Maps with a higher priority come first. As submitted or as changed since; engines ignore it.
    #[serde(skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// The maximum number of its tasks that engines hold at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running: Option<u32>,
    /// How often a task is retried if its function fails.
    pub retries: u32,
    /// How often a task is retried if its worker or engine dies.
    pub max_crashes: u32,
    /// A task that had too little memory is retried with more: up to `max_mem_bytes`, and to what a node has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_mem: Option<Growth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_mem_bytes: Option<u64>,
    /// A task that ran into its timeout is retried with more: up to `max_time_s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_time: Option<Growth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_time_s: Option<f64>,
    /// Working directory on the engine.
    pub cwd: Option<String>,
    /// The directory from which the map was submitted: the working directory on engines where it
    /// exists, unless `cwd` is given.
    pub directory: Option<String>,
    pub env: BTreeMap<String, String>,
    /// Start when that map has finished.
    pub after: Option<MapId>,
    /// The map whose values are reduced: the function takes two of them, and a task's input is a
    /// list of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reduces: Option<Reduces>,
    /// None: balanced. Some: task i runs on the i-th of these engines and nowhere else.
    pub targets: Option<Targets>,
    /// Calls a Python function in the engine's interactive worker, whose state persists (`pcluster
    /// apply`), instead of a separate worker for this map.
    #[serde(skip_serializing_if = "is_false")]
    pub interactive: bool,
    /// Set by the engine.
    #[serde(skip_deserializing, skip_serializing_if = "ProcessSetup::is_empty")]
    pub process: ProcessSetup,
}

/// How an engine prepares the processes that run tasks of a map. What users set wins.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ProcessSetup {
    /// The processors to which they are bound; empty for those of the engine.
    #[serde(skip_serializing_if = "CoreSet::is_empty")]
    pub cores: CoreSet,
    /// Variables that they do not inherit from the engine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unset: Vec<String>,
    pub env: BTreeMap<String, String>,
}

impl ProcessSetup {
    fn is_empty(&self) -> bool {
        *self == ProcessSetup::default()
    }
}

impl MapOptions {
    /// How much time an engine must have left to get such a task, in seconds.
    pub fn needed_s(&self) -> Option<f64> {
        self.time_s.or(self.timeout_s)
    }

    /// The same for an attempt that asks for this.
    pub fn needed_s_with(&self, ask: &Ask) -> Option<f64> {
        match (self.time_s, ask.limit_s()) {
            (Some(time), Some(limit)) => Some(time.max(limit)),
            (_, limit) => limit.or(self.needed_s()),
        }
    }

    /// What each task asks of its node; None if an engine is enough.
    pub fn request(&self) -> Option<Request> {
        self.request_with(&Ask::default())
    }

    /// What an attempt that asks for this asks of its node.
    pub fn request_with(&self, ask: &Ask) -> Option<Request> {
        let mem_bytes = ask.mem_bytes.or(self.mem_bytes);
        let is_enough = self.resources.is_default() && mem_bytes.is_none();
        (!is_enough).then(|| Request {
            resources: self.resources.clone(),
            mem_bytes: mem_bytes.unwrap_or_default(),
        })
    }

    /// An error if retries with more have nothing to begin with, or nowhere to go; with the names of the command line's options.
    pub fn check_retries(&self) -> Result<(), String> {
        let memory = |bytes: u64| Memory { bytes };
        match (self.retry_mem, self.mem_bytes, self.max_mem_bytes) {
            (Some(growth), None, _) => {
                return Err(format!("--retry-mem {growth} needs --mem: it multiplies what a task asks for"));
            }
            (None, _, Some(max)) => return Err(format!("--max-mem {} needs --retry-mem", memory(max))),
            (Some(_), Some(mem), Some(max)) if max <= mem => {
                return Err(format!("--max-mem {} must be more than --mem {}", memory(max), memory(mem)));
            }
            _ => {}
        }
        match (self.retry_time, self.timeout_s, self.max_time_s) {
            (Some(growth), None, _) => Err(format!("--retry-time {growth} needs --timeout: it multiplies that")),
            (None, _, Some(max)) => Err(format!("--max-time {max}s needs --retry-time")),
            (Some(_), Some(limit), Some(max)) if max.is_nan() || max <= limit => {
                Err(format!("--max-time {max}s must be more than --timeout {limit}s"))
            }
            _ => Ok(()),
        }
    }
}

fn is_zero(value: &i32) -> bool {
    *value == 0
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
            resources: TaskResources::default(),
            wait_for_resources: false,
            time_s: None,
            priority: 0,
            max_running: None,
            retries: 0,
            max_crashes: 3,
            retry_mem: None,
            max_mem_bytes: None,
            retry_time: None,
            max_time_s: None,
            cwd: None,
            directory: None,
            env: BTreeMap::new(),
            after: None,
            reduces: None,
            targets: None,
            interactive: false,
            process: ProcessSetup::default(),
        }
    }
}

/// A map whose values are reduced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reduces {
    pub map: MapId,
    /// The work of that map: values may be instances of classes defined in its code.
    pub work: Work,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MapDefinition {
    pub work: Work,
    #[serde(default)]
    pub options: MapOptions,
}

impl MapDefinition {
    /// The files that are sent along: the work's, or, if a module's function reduces, those of the
    /// map whose values are reduced.
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
    /// Converts files of older versions into bundles.
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
    fn a_file_of_an_older_version_becomes_a_bundle_of_one_file() {
        let old = r#"{"work": {"kind": "call", "from": {"file": {"name": "jobs/a.py", "text": "x = 1\n"}}, "function": "f"}}"#;
        let definition = serde_json::from_str::<MapDefinition>(old).unwrap().with_bundle();
        assert_eq!(definition.work.default_name(), "jobs/a.py:f");
        let bundle = definition.work.bundle().unwrap();
        assert_eq!((bundle.entry.as_str(), bundle.moved["a.py"].as_str()), ("a.py", "jobs/a.py"));
        assert_eq!(bundle.content.as_ref().unwrap().files().unwrap()[0].content, "x = 1\n");
        // The content itself is never sent in the definition.
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
