//! `pcluster completions`
use crate::cli::{CommandError, Context, Exit, args, output};

/// Print a shell completion script
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  pcluster completions bash > ~/.local/share/bash-completion/completions/pcluster\n  pcluster completions fish > ~/.config/fish/completions/pcluster.fish"
)]
pub(crate) struct Args {
    /// Generate the script for this shell
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: Args, _context: &Context) -> Result<Exit, CommandError> {
    // Into memory first: the generator panics when it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::app(), "pcluster", &mut script);
    output::stdout(|out| out.write_all(&script))?;
    Ok(Exit::Fine)
}
