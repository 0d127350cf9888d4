//! `pcluster gather`: the parts of a list out of the engines' namespaces, as one list.
use super::apply::on_engines::{self, EngineOptions};
use super::pull::{member, names};
use crate::cli::{CommandError, Context, Exit, output};
use crate::model::EngineId;
use crate::model::definition::Work;
use crate::model::task::TaskRow;
use serde_json::value::RawValue;

/// Concatenate a list variable from all engines
///
/// Prints one JSON list, in the order of the engines.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster gather numbers\n  pcluster gather numbers --targets 0-3")]
pub(crate) struct Args {
    /// Read this variable on the engines
    name: String,
    #[command(flatten)]
    engines: EngineOptions,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let input = names(std::slice::from_ref(&args.name))?;
    let Some(answers) = on_engines::run(context, &args.engines, Work::Pull, |engines| vec![input; engines.len()])? else {
        return Ok(Exit::Interrupted);
    };
    answers.require_success(context, "gather")?;
    let mut items = Vec::new();
    for (engine, row) in &answers.rows {
        items.extend(part(*engine, row, &args.name)?);
    }
    if answers.rows.iter().any(|(_, row)| row.pickled.is_some()) {
        context.note("note: JSON cannot represent some items exactly; they are shown as readable JSON");
    }
    let texts: Vec<&str> = items.iter().map(|item| item.get()).collect();
    output::print(&format!("[{}]\n", texts.join(", ")))?;
    Ok(Exit::Fine)
}

fn part(engine: EngineId, row: &TaskRow, name: &str) -> Result<Vec<Box<RawValue>>, CommandError> {
    let value = row.value.as_deref().unwrap_or(RawValue::NULL);
    let found = member(value, name);
    let list = found.as_deref().and_then(|value| serde_json::from_str(value.get()).ok());
    list.ok_or_else(|| {
        let what = found.as_deref().map(RawValue::get).unwrap_or("nothing");
        CommandError::failed(format!(
            "`{name}` on engine {engine} is not a list: {}",
            what.chars().take(80).collect::<String>()
        ))
        .hint(format!("show the value: pcluster pull {name}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::values::tests::row;

    #[test]
    fn parts_must_be_lists() {
        let items = part(EngineId(0), &row(0, Some(r#"{"n": [1.0, "x"]}"#)), "n").unwrap();
        assert_eq!(items.iter().map(|i| i.get()).collect::<Vec<_>>(), ["1.0", "\"x\""]);
        let says = |value| part(EngineId(2), &row(0, value), "n").unwrap_err().error;
        assert_eq!(says(Some(r#"{"n": 5}"#)), "`n` on engine 2 is not a list: 5");
        assert_eq!(says(None), "`n` on engine 2 is not a list: nothing");
    }
}
