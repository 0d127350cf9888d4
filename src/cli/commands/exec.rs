//! `pcluster exec`: a line of Python in the engines' namespaces.
use super::apply::on_engines::{self, EngineOptions, ShowValue};
use super::map::needs::NeedOptions;
use crate::cli::{CommandError, Context, Exit};
use crate::model::definition::Work;
use std::io::Read;

/// Run Python code in each engine's namespace
///
/// Output, and the value of a final expression, are prefixed with the engine's number: [0] … Names that the code sets remain
/// available to the next exec, run or pull.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster exec 'import os; os.getpid()'\n  pcluster exec --targets 0 - < setup.py")]
pub(crate) struct Args {
    /// Run this code, or - for stdin
    code: String,
    #[command(flatten)]
    engines: EngineOptions,
    #[command(flatten)]
    needs: NeedOptions,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let (code, filename) = match args.code.as_str() {
        "-" => {
            let mut code = String::new();
            let read = std::io::stdin().read_to_string(&mut code);
            read.map_err(|e| CommandError::usage(format!("cannot read the code from stdin: {e}")))?;
            (code, "<stdin>")
        }
        code => (code.to_string(), "<exec>"),
    };
    let work = Work::Execute {
        code,
        filename: filename.into(),
        bundle: None,
    };
    match on_engines::run_with(context, &args.engines, &args.needs, work, |engines| {
        vec!["[]".into(); engines.len()]
    })? {
        Some(answers) => answers.show(context, ShowValue::NotNone),
        None => Ok(Exit::Interrupted),
    }
}
