//! Templates and their variables, as data.
use std::path::PathBuf;

/// A built-in template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    /// The file name in `templates/<system>/` and in a profile: `engines.sh.tera`.
    pub name: &'static str,
    pub text: &'static str,
}

/// A rendered file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ScriptFile {
    pub path: PathBuf,
    pub text: String,
    pub executable: bool,
}

/// The value of a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VariableValue {
    /// Not requested.
    Unset,
    /// One value.
    Text(String),
    /// Words of a command.
    Words(Vec<String>),
    /// Complete lines: directives without their prefix, or shell.
    Lines(Vec<String>),
}

/// Names and values, in the order of [`VARIABLES`].
pub(crate) type Variables = Vec<(&'static str, VariableValue)>;

/// Something that a template must contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Requirement {
    pub what: String,
    pub found_by: FoundBy,
    /// A line that satisfies the requirement.
    pub line: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FoundBy {
    /// The template uses one of these variables.
    Variable(&'static [&'static str]),
    /// A directive contains a word with one of these prefixes.
    Directive(&'static [&'static str]),
}

/// All variables that a template may use.
pub(crate) const VARIABLES: &[(&str, &str)] = &[
    ("name", "the job's name, which pcluster uses to find it"),
    ("profile", "the profile's name"),
    ("cluster_id", "the cluster id; empty for the profile's default cluster"),
    ("version", "pcluster's version"),
    ("n", "the number of engines"),
    ("jobs", "the number of jobs (array elements)"),
    ("engines_per_job", "the number of engines per job"),
    ("array", "the array's range in the system's syntax (1-15); empty for a single job"),
    (
        "tasks",
        "the number of engines in the job if srun or mpiexec starts them; else empty",
    ),
    ("engines", "the shell lines that start the engines of one job"),
    ("controller", "the shell line that starts the controller"),
    ("command", "the command of one engine, or of the controller, quoted for the shell"),
    ("script", "HTCondor: the shell script that each job runs"),
    ("cwd", "the working directory"),
    ("log", "the output file, with the system's placeholders for job and array element"),
    ("queue", "the queue or partition"),
    ("account", "the account or project"),
    ("qos", "the quality of service"),
    ("walltime", "the time limit in the system's syntax"),
    ("memory", "the memory of one job in the system's syntax"),
    (
        "mem_free",
        "Grid Engine: the memory per slot or per job, as the site counts `mem_free`",
    ),
    ("memory_per_slot", "Grid Engine: the memory per slot"),
    ("cpus", "the processors of one job; with srun and mpiexec, of one engine"),
    ("gpus", "the GPUs of one job; with srun and mpiexec, of one engine"),
    ("gpu", "Grid Engine: the GPUs per slot or per job, as the site counts `gpu`"),
    ("nodes", "the number of nodes for one job of all engines"),
    ("resources", "processors, memory and GPUs combined, if the system requires it"),
    ("constraint", "features that a node must have"),
    ("parallel_environment", "Grid Engine's parallel environment and its slots"),
    ("reservation", "the reservation"),
    ("mail_user", "who gets mail"),
    ("mail_type", "when"),
    ("directives", "additional directives from the settings, one per line"),
    ("environment", "shell lines that set environment variables"),
    ("modules", "shell lines that load environment modules"),
    ("before", "shell lines from the settings, run before the start"),
];

/// Why a template cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    #[error("{template}:{line}: unknown variable `{name}`")]
    UnknownVariable { template: String, line: usize, name: String },
    #[error("{template}:{line}: {message}")]
    Syntax { template: String, line: usize, message: String },
    #[error("{template}:{line}: `{{{{ {name} }}}}` is inside quotes, but its value {value} is already quoted")]
    InQuotes {
        template: String,
        line: usize,
        name: String,
        value: String,
    },
    #[error("{template}: {what} is missing")]
    Missing { template: String, what: String, line: String },
    #[error("{what} {value:?} cannot be written in a script for {system}: {why}")]
    InvalidValue {
        system: &'static str,
        what: String,
        value: String,
        why: &'static str,
    },
    #[error("{system} does not support {what}")]
    Unsupported {
        system: &'static str,
        what: String,
        hint: Option<String>,
    },
}

impl TemplateError {
    pub(super) fn syntax(template: &str, line: usize, error: &tera::Error) -> TemplateError {
        let text = error.to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ").into();
        let template = template.into();
        TemplateError::Syntax { template, line, message }
    }

    /// A suggested action.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            TemplateError::UnknownVariable { .. } => {
                let names: Vec<&str> = VARIABLES.iter().map(|(name, _)| *name).collect();
                Some(format!(
                    "known variables: {}; `pcluster template list` describes them",
                    names.join(", ")
                ))
            }
            TemplateError::Syntax { .. } => Some(
                "write a variable as {{ name }}, a condition as {% if name %} … {% endif %}; {% raw %} … {% endraw %} is copied unchanged"
                    .into(),
            ),
            TemplateError::InQuotes { .. } => Some("remove the quotes".into()),
            TemplateError::Missing { line, .. } => Some(format!("add this line: {line}")),
            TemplateError::Unsupported { hint, .. } => hint.clone(),
            TemplateError::InvalidValue { .. } => None,
        }
    }
}

impl VariableValue {
    pub(crate) fn of<T: ToString>(value: Option<T>) -> VariableValue {
        value.map_or(VariableValue::Unset, |value| VariableValue::Text(value.to_string()))
    }
}
