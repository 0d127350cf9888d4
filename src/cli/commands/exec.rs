use crate::cli::{CommandError, Context, Exit};

/// Run Python code on engines
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: Args, _context: &Context) -> Result<Exit, CommandError> {
    Err(CommandError::internal("`pcluster exec` is not part of this build"))
}
