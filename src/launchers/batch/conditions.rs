//! Conditions in templates (`{% if n > 64 %}`), resolved with the variables' plain values before the
//! lines are rendered.
use super::template::{TemplateError, VariableValue, Variables};
use std::borrow::Cow;
use tera::{Context, Delimiters, ErrorKind, Tera};

/// The numbers and texts of the lines that remain; variables are not replaced yet.
pub(super) fn resolve_conditions(template: &str, text: &str, variables: &Variables) -> Result<Vec<(usize, String)>, TemplateError> {
    let numbered = (1..).zip(text.lines());
    if !text.contains("{%") {
        return Ok(numbered.map(|(number, line)| (number, line.to_string())).collect());
    }
    let syntax = |error: tera::Error| {
        let line = match error.kind() {
            ErrorKind::SyntaxError(report) | ErrorKind::RenderingError(report) => report.span().start_line,
            _ => 1,
        };
        TemplateError::syntax(template, line, &error)
    };
    // Each line carries its number, whatever is omitted before it.
    let source: String = numbered.map(|(number, line)| format!("{line}{NUMBER}{number}\n")).collect();
    let mut tera = Tera::default();
    let delimiters = Delimiters {
        block_start: "{%".into(),
        block_end: "%}".into(),
        variable_start: UNUSED[0].into(),
        variable_end: UNUSED[1].into(),
        ..delimiters()
    };
    tera.set_delimiters(delimiters)
        .and_then(|()| tera.add_raw_template("template", &source))
        .map_err(syntax)?;
    let names = tera.get_template_variables("template").map_err(syntax)?;
    if let Some(name) = names.iter().find(|name| !variables.iter().any(|(known, _)| known == *name)) {
        let uses = |line: &str| line.contains("{%") && line.contains(name);
        let line = text.lines().position(uses).unwrap_or_default() + 1;
        let (template, name) = (template.into(), name.to_string());
        return Err(TemplateError::UnknownVariable { template, line, name });
    }
    let mut context = Context::new();
    for (name, value) in variables {
        match value {
            VariableValue::Unset => context.insert(*name, &None::<&str>),
            VariableValue::Text(text) => match text.parse::<u64>() {
                Ok(number) => context.insert(*name, &number),
                Err(_) => context.insert(*name, text),
            },
            VariableValue::Words(lines) | VariableValue::Lines(lines) => context.insert(*name, lines),
        }
    }
    let rendered = tera.render("template", &context).map_err(syntax)?;
    let original: Vec<&str> = text.lines().collect();
    let lines = rendered.lines().filter_map(|line| {
        let (line, number) = line.rsplit_once(NUMBER)?;
        let number: usize = number.parse().ok()?;
        let is_only_conditions = line.trim().is_empty() && original.get(number - 1)?.contains("{%");
        (!is_only_conditions).then(|| (number, line.to_string()))
    });
    Ok(lines.collect())
}

/// Characters that no script contains: what disables a part of the template language, and what separates a line from its number.
const UNUSED: [&str; 4] = ["\u{1}{", "}\u{1}", "\u{2}{", "}\u{2}"];
const NUMBER: char = '\u{3}';

/// Variables only. Comments are disabled, because `${#x}` would begin one.
pub(super) fn delimiters() -> Delimiters {
    let [block_start, block_end, comment_start, comment_end] = UNUSED.map(Cow::Borrowed);
    Delimiters {
        block_start,
        block_end,
        variable_start: "{{".into(),
        variable_end: "}}".into(),
        comment_start,
        comment_end,
    }
}
