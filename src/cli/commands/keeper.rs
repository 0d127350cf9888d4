//! `pcluster keeper`: what `start` starts beside a cluster whose engines may be replaced.
use super::{Care, supervise};
use crate::cli::{CommandError, Context, Exit, logging};
use crate::cluster::keep;
use crate::profile::ProfileDir;
use std::path::PathBuf;

/// Submit new jobs for engines whose time was over, in the foreground
///
/// `pcluster start --max-walltime-restarts N` starts this. It logs to stderr, and ends with the cluster, or with SIGTERM or SIGINT.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The profile's directory, instead of --profile
    #[arg(long, value_name = "DIR")]
    profile_dir: Option<PathBuf>,
    /// Run as a process of its own, and again whenever it was killed or has crashed
    #[arg(long)]
    supervise: bool,
    /// How much to log: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

pub fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    logging::start(context.log_level(&args.log_level));
    if args.supervise {
        return supervise(&Care {
            restart_arguments: &[],
            retries_refusals: true,
            watches_supervisor: false,
        });
    }
    let profile = match &args.profile_dir {
        Some(dir) => ProfileDir::at(dir),
        None => context.profile_dir()?,
    };
    context.block_on_one_thread(keep::serve(profile, &context.cluster_id))??;
    Ok(Exit::Fine)
}
