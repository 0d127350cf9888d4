use crate::cli::{CommandError, Context, Exit};

/// Call a Python function on engines
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: Args, _context: &Context) -> Result<Exit, CommandError> {
    Err(CommandError::internal("`pcluster apply` is not part of this build"))
}
