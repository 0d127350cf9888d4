use crate::cli::{CommandError, Context, Exit};

/// Read names from the engines' namespaces
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: Args, _context: &Context) -> Result<Exit, CommandError> {
    Err(CommandError::internal("`pcluster pull` is not part of this build"))
}
