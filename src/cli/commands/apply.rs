//! `pcluster apply`: one call of a function, or one run of a command, on each of some engines.
pub(crate) mod on_engines;

use super::map::needs::NeedOptions;
use crate::cli::inputs::code::CodeArgs;
use crate::cli::inputs::function;
use crate::cli::{CommandError, Context, Exit};
use crate::model::definition::Work;
use on_engines::{EngineOptions, ShowValue};
use serde_json::value::RawValue;

/// Call a Python function once on each engine
///
/// FN is file.py:function (the file and the local modules that it imports are sent to the engines) or package.module:function
/// (imported on the engines). Each ARG is JSON, or else a string. To run a command instead, write it after two dashes. Output and
/// return values are prefixed with the engine's number: [0] …
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "pcluster apply [OPTIONS] FN [ARG]...\n       pcluster apply [OPTIONS] -- COMMAND...",
    after_help = "Examples:\n  pcluster apply os:getcwd\n  pcluster apply --targets 0,2-3 model.py:load '\"data.bin\"' 5\n  pcluster apply -- nvidia-smi -L"
)]
pub(crate) struct Args {
    /// Call this function: file.py:function or package.module:function
    #[arg(value_name = "FN")]
    function: Option<String>,
    /// Pass these arguments to the function
    #[arg(value_name = "ARG", allow_negative_numbers = true)]
    arguments: Vec<String>,
    /// Pass keyword arguments, as a JSON object, instead of ARGs
    #[arg(long, value_name = "JSON", conflicts_with = "arguments")]
    kwargs: Option<String>,
    /// Run this command instead of FN
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    engines: EngineOptions,
    #[command(flatten)]
    needs: NeedOptions,
    #[command(flatten)]
    code: CodeArgs,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let (work, input) = match (&args.function, args.command.is_empty()) {
        (Some(spec), true) => (function::work(spec, &args.code)?, input(&args)?),
        (None, false) => (Work::Command { argv: args.command }, "[]".to_string()),
        (None, true) => return Err(CommandError::usage("no function given").hint("pcluster apply file.py:function 'an argument' 5")),
        (Some(word), false) => {
            return Err(CommandError::usage(format!(
                "unexpected argument {word:?} before `--` and a command"
            )));
        }
    };
    let show = if matches!(work, Work::Command { .. }) {
        ShowValue::Never
    } else {
        ShowValue::Always
    };
    match on_engines::run_with(context, &args.engines, &args.needs, work, |engines| vec![input; engines.len()])? {
        Some(answers) => answers.show(context, show),
        None => Ok(Exit::Interrupted),
    }
}

/// A task's input: keyword arguments, or the list of positional ones.
fn input(args: &Args) -> Result<String, CommandError> {
    if let Some(text) = &args.kwargs {
        let why = match serde_json::from_str::<std::collections::BTreeMap<String, Box<RawValue>>>(text) {
            Ok(_) => return Ok(text.replace(['\n', '\r'], " ")),
            Err(error) => error,
        };
        return Err(CommandError::usage(format!("--kwargs is not a JSON object: {why}")).hint("for example --kwargs '{\"depth\": 3}'"));
    }
    let arguments: Vec<String> = args.arguments.iter().map(|text| json_or_text(text)).collect();
    Ok(format!("[{}]", arguments.join(",")))
}

/// JSON on one line, else the text as a JSON string.
pub(crate) fn json_or_text(text: &str) -> String {
    match serde_json::from_str::<Box<RawValue>>(text) {
        Ok(json) => json.get().replace(['\n', '\r'], " "),
        Err(_) => serde_json::Value::from(text).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args;

    fn parsed(line: &[&str]) -> Args {
        let words = ["pcluster", "apply"].iter().chain(line).map(std::ffi::OsString::from);
        match args::parse(words).unwrap().command {
            crate::cli::commands::Command::Apply(args) => args,
            _ => panic!(),
        }
    }

    #[test]
    fn arguments_are_json_or_text() {
        assert_eq!(
            input(&parsed(&["m:f", "5", "a b", "\"5\"", "[1,\n2]", "-1", "null"])).unwrap(),
            r#"[5,"a b","5",[1, 2],-1,null]"#
        );
        assert_eq!(input(&parsed(&["m:f"])).unwrap(), "[]");
        assert_eq!(input(&parsed(&["m:f", "--kwargs", "{\"a\":\n1}"])).unwrap(), "{\"a\": 1}");
        let error = input(&parsed(&["m:f", "--kwargs", "[1]"])).unwrap_err();
        assert!(error.error.contains("not a JSON object"), "{}", error.error);
    }

    #[test]
    fn missing_and_unexpected_arguments_are_reported() {
        let context = Context::for_tests(std::path::Path::new("/nowhere"));
        assert!(run(parsed(&[]), &context).unwrap_err().error.contains("no function given"));
        assert!(
            run(parsed(&["m:f", "--", "ls"]), &context)
                .unwrap_err()
                .error
                .contains("unexpected argument")
        );
        assert_eq!(run(parsed(&["m:f"]), &context).unwrap_err().kind.code(), 3);
    }
}
