use crate::cli::{CommandError, Context, Exit};

/// Run a Python function or a command on every input
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: Args, _context: &Context) -> Result<Exit, CommandError> {
    Err(CommandError::internal("`pcluster map` is not part of this build"))
}
