//! `pcluster run`: a Python script in the engines' namespaces.
use super::apply::on_engines::{self, EngineOptions, ShowValue};
use super::map::needs::NeedOptions;
use crate::cli::inputs::code::CodeArgs;
use crate::cli::inputs::function;
use crate::cli::{CommandError, Context, Exit};

/// Run a Python script in each engine's namespace
///
/// Sends the script and the local modules that it imports to the engines. Output is prefixed with the engine's number: [0] …
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster run setup.py\n  pcluster run train.py --targets 0-3 --with config.json")]
pub(crate) struct Args {
    /// Run this script
    #[arg(value_name = "SCRIPT.py")]
    script: String,
    #[command(flatten)]
    engines: EngineOptions,
    #[command(flatten)]
    needs: NeedOptions,
    #[command(flatten)]
    code: CodeArgs,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let work = function::script(&args.script, &args.code)?;
    match on_engines::run_with(context, &args.engines, &args.needs, work, |engines| {
        vec!["[]".into(); engines.len()]
    })? {
        Some(answers) => answers.show(context, ShowValue::Never),
        None => Ok(Exit::Interrupted),
    }
}
