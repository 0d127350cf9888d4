//! `pcluster tunnel`: what `connect` starts.
use super::{Care, supervise};
use crate::cli::{CommandError, Context, Exit, logging};
use crate::cluster::remote;
use crate::launchers::ssh::reverse;
use crate::profile::ProfileDir;
use std::path::PathBuf;

/// Keep a tunnel to another host, in the foreground
///
/// `pcluster connect` starts this. It logs to stderr, and serves until `pcluster disconnect`, SIGTERM or SIGINT.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The profile's directory, instead of --profile
    #[arg(long, value_name = "DIR")]
    profile_dir: Option<PathBuf>,
    /// One that leads engines on another host to the controller here, by its state file: `pcluster start` starts it
    #[arg(long, value_name = "FILE", hide = true)]
    reverse: Option<PathBuf>,
    /// Run as a process of its own session, and again whenever it was killed or has crashed
    #[arg(long)]
    supervise: bool,
    /// Somebody waits for the first connection: end where it does not come about
    #[arg(long)]
    first: bool,
    /// It has been connected before
    #[arg(long)]
    again: bool,
    /// How much to log: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

pub fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    logging::start(context.log_level(&args.log_level));
    if args.supervise {
        // Fails where it leads a session already: then there is nothing to be done.
        let _ = nix::unistd::setsid();
        let care = Care {
            again: &["--again"],
            insists: true,
            watches: false,
        };
        return supervise(&care, None);
    }
    if let Some(file) = &args.reverse {
        context.block_on(reverse::serve(file, args.first && !args.again))??;
        return Ok(Exit::Fine);
    }
    let profile = match &args.profile_dir {
        Some(dir) => ProfileDir::at(dir),
        None => context.profile_dir()?,
    };
    context.block_on(remote::serve(profile, &context.cluster_id, args.first && !args.again))??;
    Ok(Exit::Fine)
}
