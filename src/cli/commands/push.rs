//! `pcluster push`: values into the engines' namespaces.
use super::apply::json_or_text;
use super::apply::on_engines::{self, EngineOptions};
use crate::cli::inputs::function::is_name;
use crate::cli::{CommandError, Context, Exit};
use crate::model::definition::Work;

/// Set variables in each engine's namespace
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster push depth=3\n  pcluster push 'sizes=[1, 2, 3]' title='a text' --targets 0-3")]
pub(crate) struct Args {
    /// Set this variable; VALUE is JSON, or else a string
    #[arg(value_name = "NAME=VALUE", required = true)]
    values: Vec<String>,
    #[command(flatten)]
    engines: EngineOptions,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let input = object(&args.values)?;
    let Some(answers) = on_engines::run(context, &args.engines, Work::Push, |engines| vec![input; engines.len()])? else {
        return Ok(Exit::Interrupted);
    };
    answers.require_success(context, "push")?;
    context.note_verbose(format!("set on {} engines", answers.rows.len()));
    Ok(Exit::Fine)
}

/// `a=1 b=x` as a JSON object on one line.
fn object(values: &[String]) -> Result<String, CommandError> {
    let mut members = Vec::new();
    for text in values {
        let Some((name, value)) = text.split_once('=').filter(|(name, _)| is_name(name)) else {
            return Err(CommandError::usage(format!("{text:?} is not NAME=VALUE with a valid Python name"))
                .hint("for example: pcluster push depth=3"));
        };
        members.push(format!("{}:{}", serde_json::Value::from(name), json_or_text(value)));
    }
    Ok(format!("{{{}}}", members.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_json_or_text() {
        let all = ["a=1", "b=[1, 2]", "c=x=y", "d="].map(String::from);
        assert_eq!(object(&all).unwrap(), r#"{"a":1,"b":[1, 2],"c":"x=y","d":""}"#);
        for bad in ["a", "=1", "1a=2", "a.b=1"] {
            assert_eq!(object(&[bad.to_string()]).unwrap_err().kind.code(), 2, "{bad}");
        }
    }
}
