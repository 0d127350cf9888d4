use crate::cli::{CommandError, Context, Exit};

/// doctor
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: Args, _context: &Context) -> Result<Exit, CommandError> {
    Err(CommandError::internal("`pcluster doctor` is not part of this build"))
}
