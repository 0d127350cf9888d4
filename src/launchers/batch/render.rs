//! Renders a template into a script.
//!
//! A template is the script itself, with variables `{{ name }}`; everything else is left unchanged,
//! so that `${x%.txt}` and `${#x}` keep their meaning in the shell. It is rendered line by line,
//! and the value of a variable depends on its line: in a directive (`#SBATCH …`) it is quoted for
//! the batch system, elsewhere for the shell. A directive whose variable has no value is omitted;
//! one whose variable is a list is repeated for each item.
use super::quote;
use super::request::JobRequest;
use super::{BatchSystem, JobKind};
use std::borrow::Cow;
use std::path::PathBuf;
use tera::{Context, Delimiters, Tera};

/// A built-in template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template {
    /// The file name in `templates/<system>/` and in a profile: `engines.sh.tera`.
    pub name: &'static str,
    pub text: &'static str,
}

/// A rendered file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptFile {
    pub path: PathBuf,
    pub text: String,
    pub executable: bool,
}

/// The value of a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
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
pub type Variables = Vec<(&'static str, Value)>;

/// Something that a template must contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    pub what: String,
    pub found_by: FoundBy,
    /// A line that satisfies the requirement.
    pub line: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundBy {
    /// The template uses one of these variables.
    Variable(&'static [&'static str]),
    /// A directive contains a word with one of these prefixes.
    Directive(&'static [&'static str]),
}

/// All variables that a template may use.
pub const VARIABLES: &[(&str, &str)] = &[
    ("name", "the job's name, by which pcluster finds it again"),
    ("profile", "the profile's name"),
    ("cluster_id", "the cluster id; empty for the profile's default cluster"),
    ("version", "pcluster's version"),
    ("n", "how many engines"),
    ("jobs", "how many jobs (array elements)"),
    ("engines_per_job", "how many engines one job holds"),
    (
        "array",
        "what makes the job an array, as the system writes it (1-15); none where it is one job",
    ),
    ("single", "LSF's name of a job that is no array; else none"),
    ("tasks", "the engines of the one job, where srun or mpiexec starts them; else none"),
    ("engines", "the shell lines that start the engines of one job"),
    ("controller", "the shell line that starts the controller"),
    ("command", "the command of one engine, or of the controller, quoted for the shell"),
    ("script", "HTCondor: the shell script that each job runs"),
    ("cwd", "the working directory"),
    ("log", "the output's file, with the system's own signs for job and array element"),
    ("queue", "the queue or partition"),
    ("account", "the account or project"),
    ("qos", "the quality of service"),
    ("walltime", "the time limit, as the system writes it"),
    ("memory", "the memory of one job, as the system writes it"),
    (
        "mem_free",
        "Grid Engine: the same as the site counts `mem_free`, for each slot or for each job",
    ),
    ("memory_per_slot", "Grid Engine: the same for each slot"),
    ("cpus", "the processors of one job; with srun and mpiexec, of one engine"),
    ("gpus", "the GPUs of one job; with srun and mpiexec, of one engine"),
    ("gpu", "Grid Engine: the same as the site counts `gpu`"),
    ("nodes", "over how many nodes one job of all engines goes"),
    ("resources", "processors, memory and GPUs in one, where the system wants them so"),
    ("constraint", "what a node must have"),
    ("parallel_environment", "Grid Engine's parallel environment and its slots"),
    ("reservation", "the reservation"),
    ("mail_user", "who gets mail"),
    ("mail_type", "when"),
    ("directives", "further directives of the settings, one line each"),
    ("environment", "shell lines that set environment variables"),
    ("modules", "shell lines that load environment modules"),
    ("before", "the settings' shell lines before the start"),
];

/// Why a template cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("{template}:{line}: there is no variable `{name}`")]
    UnknownVariable { template: String, line: usize, name: String },
    #[error("{template}:{line}: {message}")]
    Syntax { template: String, line: usize, message: String },
    #[error("{template}:{line}: `{{{{ {name} }}}}` stands in quotes, but its value {value} is quoted already")]
    InQuotes {
        template: String,
        line: usize,
        name: String,
        value: String,
    },
    #[error("{template}: {what} is missing")]
    Missing { template: String, what: String, line: String },
    #[error("{what} is {value:?}, which a line of the script for {system} cannot hold: {why}")]
    Unfit {
        system: &'static str,
        what: String,
        value: String,
        why: &'static str,
    },
    #[error("{system} has no {what}")]
    Unsupported {
        system: &'static str,
        what: String,
        hint: Option<String>,
    },
}

impl TemplateError {
    /// A suggested action.
    pub fn hint(&self) -> Option<String> {
        match self {
            TemplateError::UnknownVariable { .. } => {
                let names: Vec<&str> = VARIABLES.iter().map(|(name, _)| *name).collect();
                Some(format!(
                    "the variables are: {}; `pcluster template list` explains them",
                    names.join(", ")
                ))
            }
            TemplateError::Syntax { .. } => Some("a variable is written {{ name }}; all else is left as it is".into()),
            TemplateError::InQuotes { .. } => Some("take the quotes away".into()),
            TemplateError::Missing { line, .. } => Some(format!("add this line: {line}")),
            TemplateError::Unsupported { hint, .. } => hint.clone(),
            TemplateError::Unfit { .. } => None,
        }
    }
}

/// The kind of a line in the script.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Directive,
    Comment,
    Shell,
}

/// Renders the script of one job. `name` is the template's (`engines.sh.tera`).
pub fn render(system: &dyn BatchSystem, name: &str, text: &str, request: &JobRequest) -> Result<String, TemplateError> {
    render_named(system, name, name, text, request)
}

/// Renders a template that error messages call `shown`.
pub fn render_named(system: &dyn BatchSystem, name: &str, shown: &str, text: &str, request: &JobRequest) -> Result<String, TemplateError> {
    let variables = system.variables(request)?;
    let is_description = !name.trim_end_matches(".tera").ends_with(".sh") && system.directive_prefix().is_empty();
    let mut script = String::new();
    let mut used: Vec<String> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let place = place_of(line, system.directive_prefix(), is_description);
        let line = Line {
            system,
            template: shown,
            number: number + 1,
            text: line,
            place,
        };
        for rendered in line.render(&variables, &mut used)? {
            script.push_str(&rendered);
            script.push('\n');
        }
    }
    for need in system.needs(name, request) {
        let met = match need.found_by {
            FoundBy::Variable(names) => used.iter().any(|name| names.contains(&name.as_str())),
            FoundBy::Directive(words) => script
                .lines()
                .filter(|line| place_of(line, system.directive_prefix(), is_description) == Place::Directive)
                .flat_map(str::split_whitespace)
                .any(|word| words.iter().any(|begin| word.starts_with(begin))),
        };
        if !met {
            return Err(TemplateError::Missing {
                template: shown.into(),
                what: need.what,
                line: need.line,
            });
        }
    }
    unused(system, name, shown, &variables, &used, request)?;
    Ok(script)
}

/// A requested resource that the template does not use: the line to add is that of the built-in
/// template.
fn unused(
    system: &dyn BatchSystem,
    name: &str,
    shown: &str,
    variables: &Variables,
    used: &[String],
    request: &JobRequest,
) -> Result<(), TemplateError> {
    let Some(own) = system
        .templates(request.kind)
        .iter()
        .find(|own| own.name == name)
        .or(system.templates(request.kind).first())
    else {
        return Ok(());
    };
    let asked = ASKED_FOR.iter().filter(|key| {
        let value = variables.iter().find(|(known, _)| known == *key).map(|(_, value)| value);
        let is_set = match value {
            Some(Value::Text(_) | Value::Words(_)) => true,
            Some(Value::Lines(lines)) => !lines.is_empty(),
            _ => false,
        };
        is_set && !used.iter().any(|name| setting_of(name) == **key)
    });
    for key in asked {
        let says = |line: &&str| {
            variables
                .iter()
                .any(|(name, _)| setting_of(name) == *key && line.contains(&format!("{{{{ {name} }}}}")))
        };
        if let Some(line) = own.text.lines().find(says) {
            return Err(TemplateError::Missing {
                template: shown.into(),
                what: format!("what launchers.{}.{key} asks for", system.name()),
                line: line.into(),
            });
        }
    }
    Ok(())
}

/// The setting that supplies a variable's value.
fn setting_of(variable: &str) -> &str {
    match variable {
        "mem_free" | "memory_per_slot" => "memory",
        "gpu" => "gpus",
        other => other,
    }
}

/// Variables that have a setting of the same name.
const ASKED_FOR: &[&str] = &[
    "queue",
    "account",
    "qos",
    "walltime",
    "memory",
    "gpus",
    "constraint",
    "reservation",
    "mail_user",
    "mail_type",
    "directives",
    "modules",
    "before",
];

fn place_of(line: &str, prefix: &str, is_description: bool) -> Place {
    if is_description {
        return if line.starts_with('#') { Place::Comment } else { Place::Directive };
    }
    match line.strip_prefix(prefix) {
        Some(rest) if !prefix.is_empty() && rest.starts_with(char::is_whitespace) => Place::Directive,
        _ if line.trim_start().starts_with('#') => Place::Comment,
        _ => Place::Shell,
    }
}

struct Line<'a> {
    system: &'a dyn BatchSystem,
    template: &'a str,
    number: usize,
    text: &'a str,
    place: Place,
}

impl Line<'_> {
    fn render(&self, variables: &Variables, used: &mut Vec<String>) -> Result<Vec<String>, TemplateError> {
        if !self.text.contains("{{") {
            return Ok(vec![self.text.to_string()]);
        }
        let mut tera = Tera::default();
        let parsed = tera
            .set_delimiters(delimiters())
            .and_then(|()| tera.add_raw_template("line", self.text));
        parsed.map_err(|e| self.syntax(&e))?;
        let mut names: Vec<String> = tera
            .get_template_variables("line")
            .map_err(|e| self.syntax(&e))?
            .into_iter()
            .map(str::to_string)
            .collect();
        names.sort();
        let mut context = Context::new();
        let mut many: Option<(String, Vec<String>)> = None;
        for name in names {
            let Some((_, value)) = variables.iter().find(|(known, _)| *known == name) else {
                let (template, line) = (self.template.into(), self.number);
                return Err(TemplateError::UnknownVariable { template, line, name });
            };
            match value {
                Value::Unset if self.place == Place::Directive || self.is_alone(&name) => return Ok(Vec::new()),
                Value::Unset => context.insert(name.clone(), if self.place == Place::Shell { "''" } else { "" }),
                Value::Text(text) => context.insert(name.clone(), &self.quoted(&name, text)?),
                Value::Words(words) if self.place == Place::Shell => context.insert(name.clone(), &quote::shell_words(words)),
                Value::Words(words) => context.insert(name.clone(), &self.quoted(&name, &quote::shell_words(words))?),
                Value::Lines(lines) => many = Some((name.clone(), lines.clone())),
            }
            used.push(name);
        }
        let Some((name, lines)) = many else {
            return Ok(vec![tera.render("line", &context).map_err(|e| self.syntax(&e))?]);
        };
        let mut rendered = Vec::new();
        for line in lines {
            if self.place != Place::Shell {
                one_line(self.system, &name, &line)?;
            }
            context.insert(name.clone(), &line);
            rendered.push(tera.render("line", &context).map_err(|e| self.syntax(&e))?);
        }
        Ok(rendered)
    }

    fn quoted(&self, name: &str, value: &str) -> Result<String, TemplateError> {
        match self.place {
            Place::Comment => Ok(value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()),
            Place::Directive => {
                one_line(self.system, name, value)?;
                self.system.quote_directive(name, value)
            }
            Place::Shell => {
                let quoted = quote::shell(value);
                if quoted != value && stands_in_quotes(self.text, name) {
                    return Err(TemplateError::InQuotes {
                        template: self.template.into(),
                        line: self.number,
                        name: name.into(),
                        value: quoted,
                    });
                }
                Ok(quoted)
            }
        }
    }

    fn is_alone(&self, name: &str) -> bool {
        let inner = self.text.trim().strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
        inner.is_some_and(|inner| inner.trim() == name)
    }

    fn syntax(&self, error: &tera::Error) -> TemplateError {
        TemplateError::Syntax {
            template: self.template.into(),
            line: self.number,
            message: error.to_string().lines().next().unwrap_or_default().to_string(),
        }
    }
}

/// Blocks and comments of the template language are disabled: `${#x}` would begin a comment.
fn delimiters() -> Delimiters {
    let text = |text: &'static str| Cow::Borrowed(text);
    Delimiters {
        block_start: text("\u{1}{"),
        block_end: text("}\u{1}"),
        variable_start: text("{{"),
        variable_end: text("}}"),
        comment_start: text("\u{2}{"),
        comment_end: text("}\u{2}"),
    }
}

/// A value with a line break would start another directive.
fn one_line(system: &dyn BatchSystem, name: &str, value: &str) -> Result<(), TemplateError> {
    match value.chars().any(char::is_control) {
        false => Ok(()),
        true => Err(TemplateError::Unfit {
            system: system.title(),
            what: name.into(),
            value: value.into(),
            why: "it has a line break or another control character",
        }),
    }
}

fn stands_in_quotes(line: &str, name: &str) -> bool {
    let mut open: Option<char> = None;
    let mut rest = line;
    while let Some(character) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("{{") {
            let inner = after.split("}}").next().unwrap_or_default();
            if open.is_some() && inner.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name) {
                return true;
            }
            rest = after.get(inner.len()..).and_then(|r| r.strip_prefix("}}")).unwrap_or_default();
            continue;
        }
        let mut skip = character.len_utf8();
        match (character, open) {
            ('\\', None | Some('"')) => skip += rest[skip..].chars().next().map_or(0, char::len_utf8),
            ('\'' | '"', None) => open = Some(character),
            (c, Some(o)) if c == o => open = None,
            _ => {}
        }
        rest = &rest[skip..];
    }
    false
}

/// The variables that all batch systems share. The rows add to these and override those that they
/// format differently.
pub fn common(request: &JobRequest) -> Variables {
    let resources = &request.resources;
    let text = |value: &Option<String>| value.clone().map_or(Value::Unset, Value::Text);
    let number = |value: u32| Value::Text(value.to_string());
    let counted = |value: Option<u32>| value.map_or(Value::Unset, number);
    let modules = resources
        .modules
        .iter()
        .map(|module| format!("module load {}", quote::shell(module)));
    let engines = super::engines::lines(request);
    let is_controller = request.kind == JobKind::Controller;
    let values = vec![
        ("name", Value::Text(request.name.clone())),
        ("profile", Value::Text(request.profile.clone())),
        ("cluster_id", Value::Text(request.cluster_id.clone())),
        ("version", Value::Text(crate::model::VERSION.into())),
        ("n", number(request.n)),
        ("jobs", number(request.jobs())),
        ("engines_per_job", number(request.engines_per_job.max(1))),
        (
            "engines",
            if is_controller {
                Value::Unset
            } else {
                Value::Lines(engines.clone())
            },
        ),
        ("controller", if is_controller { Value::Lines(engines) } else { Value::Unset }),
        ("command", Value::Words(request.argv.clone())),
        ("cwd", Value::Text(request.cwd.to_string_lossy().into_owned())),
        ("queue", text(&resources.queue)),
        ("account", text(&resources.account)),
        ("qos", text(&resources.qos)),
        (
            "walltime",
            resources.walltime.map_or(Value::Unset, |time| Value::Text(time.to_string())),
        ),
        ("nodes", counted(resources.nodes)),
        ("constraint", text(&resources.constraint)),
        ("reservation", text(&resources.reservation)),
        ("mail_user", text(&resources.mail_user)),
        ("mail_type", text(&resources.mail_type)),
        ("directives", Value::Lines(resources.directives.clone())),
        ("modules", Value::Lines(modules.collect())),
        ("before", Value::Lines(resources.before.clone())),
    ];
    let mut all: Variables = VARIABLES.iter().map(|(name, _)| (*name, Value::Unset)).collect();
    put(&mut all, values);
    all
}

/// Sets variables that are listed in [`VARIABLES`].
pub fn put(variables: &mut Variables, values: impl IntoIterator<Item = (&'static str, Value)>) {
    for (name, value) in values {
        if let Some(place) = variables.iter_mut().find(|(known, _)| *known == name) {
            place.1 = value;
        }
    }
}

/// A value that this system's directives cannot represent.
pub fn unfit(system: &'static str, what: &str, value: &str, why: &'static str) -> TemplateError {
    TemplateError::Unfit {
        system,
        what: what.into(),
        value: value.into(),
        why,
    }
}

/// Rejects settings that this system does not support.
pub fn unsupported(system: &dyn BatchSystem, _request: &JobRequest, settings: &[(&str, bool)]) -> Result<(), TemplateError> {
    match settings.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((key, _)) => Err(TemplateError::Unsupported {
            system: system.title(),
            what: format!("setting `{key}`"),
            hint: Some(format!(
                "leave launchers.{name}.{key} out; what the site has instead can go into launchers.{name}.directives",
                name = system.name()
            )),
        }),
    }
}

/// A number of nodes requires one job of all engines, selected by `start` (`srun`, `mpiexec`).
pub fn nodes_are_of_one_job(system: &dyn BatchSystem, request: &JobRequest, start: &str) -> Result<(), TemplateError> {
    if request.resources.nodes.is_none() || request.is_one_job() || request.kind == JobKind::Controller {
        return Ok(());
    }
    let name = system.name();
    Err(TemplateError::Unsupported {
        system: system.title(),
        what: "number of nodes for jobs that are on one node each".into(),
        hint: Some(format!(
            "set launchers.{name}.start to {start} for one job of all engines, or leave launchers.{name}.nodes out"
        )),
    })
}
