use crate::cli::{CommandError, Context, Exit};

/// Collect the parts of a list from the engines
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: Args, _context: &Context) -> Result<Exit, CommandError> {
    Err(CommandError::internal("`pcluster gather` is not part of this build"))
}
