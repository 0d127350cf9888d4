use crate::cli::{CommandError, Context, Exit};

/// clean
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: Args, _context: &Context) -> Result<Exit, CommandError> {
    Err(CommandError::internal("`pcluster clean` is not part of this build"))
}
