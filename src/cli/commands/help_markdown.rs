//! `pcluster help-markdown`: the command line as `docs/reference/cli.md`.
use crate::cli::{CommandError, Context, Exit, output, reference};

/// Print the command line's reference in Markdown
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: Args, _context: &Context) -> Result<Exit, CommandError> {
    output::print(&reference::markdown())?;
    Ok(Exit::Fine)
}
