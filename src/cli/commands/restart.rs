//! `pcluster restart`
use super::{start, stop};
use crate::cli::{CommandError, Context, ErrorKind, Exit};

/// Stop a cluster if it is running, then start it again
///
/// Keeps all records; unfinished tasks resume. Takes the options of `pcluster start`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster restart\n  pcluster restart -n 8 --log-level debug")]
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    start: start::Args,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    match stop::stop(&context.profile_dir()?, &context.cluster_id, context) {
        Ok(_) => context.note(format!("{}: stopped", context.describe_cluster())),
        Err(error) if error.kind == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    start::run(args.start, context)
}
