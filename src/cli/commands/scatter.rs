use crate::cli::{CommandError, Context, Exit};

/// Share out a list over the engines
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: Args, _context: &Context) -> Result<Exit, CommandError> {
    Err(CommandError::internal("`pcluster scatter` is not part of this build"))
}
