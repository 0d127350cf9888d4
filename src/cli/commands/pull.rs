//! `pcluster pull`: values out of the engines' namespaces.
use super::apply::on_engines::{self, EngineOptions, ShowValue};
use crate::cli::inputs::function::is_name;
use crate::cli::{CommandError, Context, Exit};
use crate::model::definition::Work;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Print variables of each engine's namespace
///
/// Prints one variable as its JSON value, several as an object. Each line is prefixed with the engine's number: [0] …
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster pull total\n  pcluster pull depth sizes --targets 0")]
pub(crate) struct Args {
    /// Print these variables
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    #[command(flatten)]
    engines: EngineOptions,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let input = names(&args.names)?;
    let Some(mut answers) = on_engines::run(context, &args.engines, Work::Pull, |engines| vec![input; engines.len()])? else {
        return Ok(Exit::Interrupted);
    };
    if let ([name], false) = (args.names.as_slice(), context.json) {
        for (_, row) in &mut answers.rows {
            row.value = row.value.take().map(|value| member(&value, name).unwrap_or(value));
        }
    }
    answers.show(context, ShowValue::Always)
}

/// The names as a JSON list.
pub(crate) fn names(names: &[String]) -> Result<String, CommandError> {
    match names.iter().find(|name| !is_name(name)) {
        Some(bad) => Err(CommandError::usage(format!("{bad:?} is not a valid Python name"))),
        None => Ok(serde_json::Value::from(names.to_vec()).to_string()),
    }
}

/// One member of a JSON object, unchanged.
pub(crate) fn member(object: &RawValue, name: &str) -> Option<Box<RawValue>> {
    let mut members: BTreeMap<String, Box<RawValue>> = serde_json::from_str(object.get()).ok()?;
    members.remove(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_names_are_rejected_and_members_found() {
        assert_eq!(names(&["a".into(), "b_1".into()]).unwrap(), r#"["a","b_1"]"#);
        assert!(names(&["a b".into()]).is_err());
        let object = RawValue::from_string(r#"{"a": 1.0, "b": [2]}"#.into()).unwrap();
        assert_eq!(member(&object, "a").unwrap().get(), "1.0");
        assert!(member(&object, "c").is_none());
    }
}
