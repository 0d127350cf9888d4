//! `pcluster restart`
use super::{start, stop};
use crate::cli::{CommandError, Context, ErrorKind, Exit};

/// Stop a cluster, if it runs, and start it again
///
/// Its records stay, and tasks that were not finished go on. Takes the options of `pcluster start`.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    start: start::Args,
}

pub fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    match stop::stop(&context.profile_dir()?, &context.cluster_id, context) {
        Ok(_) => context.say(format!("{}: stopped", context.cluster_in_words())),
        Err(error) if error.kind == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    start::run(args.start, context)
}
