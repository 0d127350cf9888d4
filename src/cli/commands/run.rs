use crate::cli::{CommandError, Context, Exit};

/// Run a Python script on engines
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: Args, _context: &Context) -> Result<Exit, CommandError> {
    Err(CommandError::internal("`pcluster run` is not part of this build"))
}
