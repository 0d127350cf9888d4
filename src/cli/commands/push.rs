use crate::cli::{CommandError, Context, Exit};

/// Set names in the engines' namespaces
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: Args, _context: &Context) -> Result<Exit, CommandError> {
    Err(CommandError::internal("`pcluster push` is not part of this build"))
}
