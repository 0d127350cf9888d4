//! Renders a template into a script.
//!
//! A template is the script itself, with variables `{{ name }}`; everything else is left unchanged,
//! so that `${x%.txt}` and `${#x}` keep their meaning in the shell. It is rendered line by line,
//! and the value of a variable depends on its line: in a directive (`#SBATCH …`) it is quoted for
//! the batch system, elsewhere for the shell. A directive whose variable has no value is omitted;
//! one whose variable is a list is repeated for each item. Conditions are resolved before
//! ([`super::conditions`]).
use super::conditions::{delimiters, resolve_conditions};
use super::request::JobRequest;
use super::table::{SystemTable, is_set};
use super::template::{FoundBy, TemplateError, VARIABLES, VariableValue, Variables};
use super::{BatchSystem, JobKind};
use crate::model::shell;
use tera::{Context, Tera};

/// The kind of a line in the script.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LineKind {
    Directive,
    Comment,
    Shell,
}

/// Renders the script of one job. `name` is the template's (`engines.sh.tera`).
#[cfg(test)]
pub(crate) fn render(system: &dyn BatchSystem, name: &str, text: &str, request: &JobRequest) -> Result<String, TemplateError> {
    render_named(system, name, name, text, request)
}

/// Renders a template that error messages call `shown`.
pub(crate) fn render_named(
    system: &dyn BatchSystem,
    name: &str,
    shown: &str,
    text: &str,
    request: &JobRequest,
) -> Result<String, TemplateError> {
    let variables = system.variables(request)?;
    let is_description = !name.trim_end_matches(".tera").ends_with(".sh") && system.table().directive_prefix.is_empty();
    let mut script = String::new();
    let mut used: Vec<String> = Vec::new();
    for (number, line) in resolve_conditions(shown, text, &variables)? {
        let line = TemplateLine {
            system,
            template: shown,
            number,
            text: &line,
            kind: kind_of(&line, system.table().directive_prefix, is_description),
        };
        for rendered in line.render(&variables, &mut used)? {
            script.push_str(&rendered);
            script.push('\n');
        }
    }
    for requirement in system.requirements(name, request) {
        let met = match requirement.found_by {
            FoundBy::Variable(names) => used.iter().any(|name| names.contains(&name.as_str())),
            FoundBy::Directive(words) => script
                .lines()
                .filter(|line| kind_of(line, system.table().directive_prefix, is_description) == LineKind::Directive)
                .flat_map(str::split_whitespace)
                .any(|word| words.iter().any(|begin| word.starts_with(begin))),
        };
        if !met {
            return Err(TemplateError::Missing {
                template: shown.into(),
                what: requirement.what,
                line: requirement.line,
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
    let asked = REQUESTABLE.iter().filter(|key| {
        let value = variables.iter().find(|(known, _)| known == *key).map(|(_, value)| value);
        let is_set = match value {
            Some(VariableValue::Text(_) | VariableValue::Words(_)) => true,
            Some(VariableValue::Lines(lines)) => !lines.is_empty(),
            _ => false,
        };
        is_set && !used.iter().any(|name| setting_of(name) == **key)
    });
    for key in asked {
        let uses_variable = |line: &&str| {
            variables
                .iter()
                .any(|(name, _)| setting_of(name) == *key && line.contains(&format!("{{{{ {name} }}}}")))
        };
        if let Some(line) = own.text.lines().find(uses_variable) {
            return Err(TemplateError::Missing {
                template: shown.into(),
                what: format!("the directive for launchers.{}.{key}", system.name()),
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
const REQUESTABLE: &[&str] = &[
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

fn kind_of(line: &str, prefix: &str, is_description: bool) -> LineKind {
    if is_description {
        return if line.starts_with('#') {
            LineKind::Comment
        } else {
            LineKind::Directive
        };
    }
    match line.strip_prefix(prefix) {
        Some(rest) if !prefix.is_empty() && rest.starts_with(char::is_whitespace) => LineKind::Directive,
        _ if line.trim_start().starts_with('#') => LineKind::Comment,
        _ => LineKind::Shell,
    }
}

struct TemplateLine<'a> {
    system: &'a dyn BatchSystem,
    template: &'a str,
    number: usize,
    text: &'a str,
    kind: LineKind,
}

impl TemplateLine<'_> {
    fn render(&self, variables: &Variables, used: &mut Vec<String>) -> Result<Vec<String>, TemplateError> {
        if !self.text.contains("{{") {
            return Ok(vec![self.text.to_string()]);
        }
        let mut tera = Tera::default();
        let parsed = tera
            .set_delimiters(delimiters())
            .and_then(|()| tera.add_raw_template("line", self.text));
        let syntax = |error: tera::Error| TemplateError::syntax(self.template, self.number, &error);
        parsed.map_err(syntax)?;
        let mut names: Vec<String> = tera
            .get_template_variables("line")
            .map_err(syntax)?
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
                VariableValue::Unset if self.kind == LineKind::Directive || self.is_alone(&name) => return Ok(Vec::new()),
                VariableValue::Unset => context.insert(name.clone(), if self.kind == LineKind::Shell { "''" } else { "" }),
                VariableValue::Text(text) => context.insert(name.clone(), &self.quoted(&name, text)?),
                VariableValue::Words(words) if self.kind == LineKind::Shell => context.insert(name.clone(), &shell::quoted_words(words)),
                VariableValue::Words(words) => context.insert(name.clone(), &self.quoted(&name, &shell::quoted_words(words))?),
                VariableValue::Lines(lines) => many = Some((name.clone(), lines.clone())),
            }
            used.push(name);
        }
        let Some((name, lines)) = many else {
            return Ok(vec![tera.render("line", &context).map_err(syntax)?]);
        };
        let mut rendered = Vec::new();
        for line in lines {
            if self.kind != LineKind::Shell {
                check_single_line(self.system, &name, &line)?;
            }
            context.insert(name.clone(), &line);
            rendered.push(tera.render("line", &context).map_err(syntax)?);
        }
        Ok(rendered)
    }

    fn quoted(&self, name: &str, value: &str) -> Result<String, TemplateError> {
        match self.kind {
            LineKind::Comment => Ok(value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()),
            LineKind::Directive => {
                check_single_line(self.system, name, value)?;
                self.system.quote_directive(name, value)
            }
            LineKind::Shell => {
                let quoted = shell::quoted(value);
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
}

/// A value with a line break would start another directive.
fn check_single_line(system: &dyn BatchSystem, name: &str, value: &str) -> Result<(), TemplateError> {
    match value.chars().any(char::is_control) {
        false => Ok(()),
        true => Err(TemplateError::InvalidValue {
            system: system.title(),
            what: name.into(),
            value: value.into(),
            why: "it contains a line break or another control character",
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
/// format differently. Rejects settings that the system does not support.
pub(crate) fn common(table: &SystemTable, request: &JobRequest) -> Result<Variables, TemplateError> {
    check(table, request)?;
    let resources = &request.resources;
    let modules = resources
        .modules
        .iter()
        .map(|module| format!("module load {}", shell::quoted(module)));
    let start = match request.kind {
        JobKind::Controller => "controller",
        JobKind::Engines => "engines",
    };
    let [log_of_array, log_of_job] = table.log;
    let log = request.log_dir.join(&request.log_stem).to_string_lossy().into_owned();
    let [job, element] = table.job;
    let values = vec![
        ("name", VariableValue::Text(request.name.clone())),
        ("profile", VariableValue::Text(request.profile.clone())),
        ("cluster_id", VariableValue::Text(request.cluster_id.clone())),
        ("version", VariableValue::Text(crate::model::VERSION.into())),
        ("n", VariableValue::of(Some(request.n))),
        ("jobs", VariableValue::of(Some(request.jobs()))),
        ("engines_per_job", VariableValue::of(Some(request.engines_per_job.max(1)))),
        (
            "array",
            VariableValue::of(request.is_array().then(|| format!("1-{}", request.jobs()))),
        ),
        ("tasks", VariableValue::of(request.is_one_job().then_some(request.n))),
        (start, VariableValue::Lines(super::engines::lines(request))),
        ("command", VariableValue::Words(request.argv.clone())),
        ("cwd", VariableValue::Text(request.cwd.to_string_lossy().into_owned())),
        (
            "log",
            VariableValue::Text(format!("{log}-{}", if request.is_array() { log_of_array } else { log_of_job })),
        ),
        ("queue", VariableValue::of(resources.queue.as_ref())),
        ("account", VariableValue::of(resources.account.as_ref())),
        ("qos", VariableValue::of(resources.qos.as_ref())),
        ("walltime", VariableValue::of(resources.walltime)),
        ("nodes", VariableValue::of(resources.nodes)),
        ("constraint", VariableValue::of(resources.constraint.as_ref())),
        ("reservation", VariableValue::of(resources.reservation.as_ref())),
        ("mail_user", VariableValue::of(resources.mail_user.as_ref())),
        ("mail_type", VariableValue::of(resources.mail_type.as_ref())),
        ("directives", VariableValue::Lines(resources.directives.clone())),
        (
            "environment",
            VariableValue::Lines(super::engines::environment(request, job, element)),
        ),
        ("modules", VariableValue::Lines(modules.collect())),
        ("before", VariableValue::Lines(resources.before.clone())),
    ];
    let mut all: Variables = VARIABLES.iter().map(|(name, _)| (*name, VariableValue::Unset)).collect();
    set_variables(&mut all, values);
    Ok(all)
}

/// Sets variables that are listed in [`VARIABLES`].
pub(crate) fn set_variables(variables: &mut Variables, values: impl IntoIterator<Item = (&'static str, VariableValue)>) {
    for (name, value) in values {
        if let Some(entry) = variables.iter_mut().find(|(known, _)| *known == name) {
            entry.1 = value;
        }
    }
}

/// A value that this system's directives cannot represent.
pub(crate) fn invalid_value(system: &'static str, what: &str, value: &str, why: &'static str) -> TemplateError {
    TemplateError::InvalidValue {
        system,
        what: what.into(),
        value: value.into(),
        why,
    }
}

/// Rejects settings that this system does not support.
fn check(table: &SystemTable, request: &JobRequest) -> Result<(), TemplateError> {
    let SystemTable { name, title, .. } = table;
    let unsupported = |what: String, hint: String| {
        let (system, hint) = (*title, Some(hint));
        Err(TemplateError::Unsupported { system, what, hint })
    };
    if let Some(key) = table.unsupported.iter().find(|key| is_set(&request.resources, key)) {
        return unsupported(
            format!("setting `{key}`"),
            format!("remove launchers.{name}.{key}; put the site's equivalent into launchers.{name}.directives"),
        );
    }
    let start = table.one_job.first().map_or("array", |start| start.word());
    if request.resources.nodes.is_some() && request.is_array() {
        return unsupported(
            "a number of nodes for jobs on a single node".into(),
            format!("set launchers.{name}.start to {start} for one job of all engines, or remove launchers.{name}.nodes"),
        );
    }
    match request.resources.start {
        _ if !request.is_one_job() => Ok(()),
        _ if table.one_job.is_empty() => unsupported("one job of all engines".into(), format!("set launchers.{name}.start to {start}")),
        mode if !table.one_job.contains(&mode) => unsupported(
            mode.word().into(),
            format!("set launchers.{name}.start to {start} for one job of all engines, or to array"),
        ),
        _ => Ok(()),
    }
}
