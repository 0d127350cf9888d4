use crate::cli::{CommandError, Context, Exit};

/// status
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: Args, _context: &Context) -> Result<Exit, CommandError> {
    Err(CommandError::internal("`pcluster status` is not part of this build"))
}
