use crate::cli::{CommandError, Context, Exit};

/// help_markdown
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: Args, _context: &Context) -> Result<Exit, CommandError> {
    Err(CommandError::internal("`pcluster help_markdown` is not part of this build"))
}
