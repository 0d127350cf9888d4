//! `pcluster completions`
use crate::cli::{CommandError, Context, Exit, args, output};

/// Print a completion script for a shell
///
/// For example: pcluster completions bash > ~/.local/share/bash-completion/completions/pcluster
#[derive(Debug, clap::Args)]
pub struct Args {
    shell: clap_complete::Shell,
}

pub fn run(args: Args, _context: &Context) -> Result<Exit, CommandError> {
    // Into memory first: the generator panics when it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::app(), "pcluster", &mut script);
    output::stdout(|out| out.write_all(&script))?;
    Ok(Exit::Fine)
}
