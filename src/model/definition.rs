//! What a map runs, and how. It travels once to the controller and once to each engine; a task carries only its input.
use super::MapId;
use super::targets::Targets;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The work that every task of a map does on its own input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Work {
    /// A Python function. A task's input is a JSON list (positional arguments) or object (keyword arguments).
    Call {
        /// Where the function is: a source file whose text travels, or a module that the engine's Python imports.
        from: CallSource,
        function: String,
    },
    /// A command without a shell. `{}` stands for the whole input, `{1}` `{2}` … for its columns, in any word;
    /// without any, the input is appended. A task's input is a JSON list of strings.
    Command { argv: Vec<String> },
    /// Python source run in the engine's namespace. A task's input is not looked at. The value is that of a last expression.
    Execute { code: String, filename: String },
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
            Work::Call {
                from: CallSource::File { name, .. },
                function,
            } => format!("{name}:{function}"),
            Work::Call {
                from: CallSource::Module { module },
                function,
            } => format!("{module}:{function}"),
            Work::Command { argv } => argv.join(" "),
            Work::Execute { filename, .. } => filename.clone(),
            other => other.kind().to_string(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallSource {
    /// `name` as the user spelled it (for tracebacks), `text` the whole source.
    File {
        name: String,
        text: String,
    },
    Module {
        module: String,
    },
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
