//! `pcluster disconnect`
use crate::cli::context::describe_cluster;
use crate::cli::output::json;
use crate::cli::{CommandError, Context, Exit};
use crate::cluster::{self, Condition, remote};
use crate::profile::ProfileDir;

/// Close the tunnel to a remote cluster, which keeps running
///
/// Removes the connection file that `connect` wrote. Maps continue on the remote host; `connect` finds them again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  pcluster disconnect --profile site\n  pcluster disconnect --all")]
pub(crate) struct Args {
    /// Close all tunnels of all profiles
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let all: Vec<(ProfileDir, String)> = match args.all {
        false => vec![(context.profile_dir()?, context.cluster_id.clone())],
        true => cluster::list(context.ipython_dir.as_deref())?
            .iter()
            .filter(|c| c.state == Condition::Connected)
            .map(|c| (ProfileDir::at(&c.directory), c.cluster_id.clone()))
            .collect(),
    };
    let mut views = Vec::new();
    for (profile, cluster_id) in &all {
        let state = context.block_on(remote::disconnect(profile, cluster_id))??;
        let name = describe_cluster(profile.name(), cluster_id);
        if !context.json {
            context.note(format!(
                "{name}: disconnected from {}; the remote cluster keeps running",
                state.destination
            ));
        }
        views.push(serde_json::json!({"profile": profile.name(), "cluster_id": cluster_id, "destination": state.destination}));
    }
    if context.json {
        json::print(&serde_json::json!({"disconnected": views}))?;
    } else if all.is_empty() {
        context.note("no connections");
    }
    Ok(Exit::Fine)
}
