//! `pcluster connect`
use crate::cli::context::describe_cluster;
use crate::cli::interruptible::interruptible;
use crate::cli::output::counted;
use crate::cli::output::json;
use crate::cli::{CommandError, Context, Exit};
use crate::cluster::remote::{self, ConnectOptions, Connected};

/// Connect to a cluster on a remote host through ssh
///
/// Finds the running cluster on the remote host, fetches its client connection file, and keeps a tunnel to its controller
/// open in the background. Every command of this profile, and ipyparallel's Client, then works on that cluster. Uses your ssh
/// configuration: names, keys, agent, jump hosts.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  pcluster connect login.example.org\n  pcluster connect me@login.example.org --profile site --remote-profile default"
)]
pub(crate) struct Args {
    /// Connect to this host: [user@]host, a Host of ~/.ssh/config, or ssh://user@host:port
    destination: String,
    /// Use this remote profile [default: the local name, or the profile of the only running cluster]
    #[arg(long, value_name = "NAME")]
    remote_profile: Option<String>,
    /// Use this remote cluster id
    #[arg(long, value_name = "ID")]
    remote_cluster_id: Option<String>,
    /// Look for profiles in this remote directory [default: the remote IPYTHONDIR, else ~/.ipython]
    #[arg(long, value_name = "DIR")]
    remote_ipython_dir: Option<String>,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    let options = ConnectOptions {
        profile: context.profile_dir()?,
        cluster_id: context.cluster_id.clone(),
        destination: args.destination,
        remote_profile: args.remote_profile,
        remote_cluster_id: args.remote_cluster_id,
        remote_ipython_dir: args.remote_ipython_dir,
        program: None,
    };
    connect(options, context)?;
    Ok(Exit::Fine)
}

pub(crate) fn connect(options: ConnectOptions, context: &Context) -> Result<(), CommandError> {
    let profile = options.profile.clone();
    let connected = interruptible(context, remote::connect(options)).map_err(|e| e.with_interruption("the tunnel was closed"))?;
    if context.json {
        return json::print(&serde_json::json!({
            "profile": profile.name(),
            "cluster_id": context.cluster_id,
            "destination": connected.destination,
            "remote_profile": connected.leads_to.as_ref().map(|l| &l.profile),
            "remote_cluster_id": connected.leads_to.as_ref().map(|l| &l.cluster_id),
            "controller_pid": connected.leads_to.as_ref().and_then(|l| l.pid),
            "controller_host": connected.leads_to.as_ref().and_then(|l| l.host.as_ref()),
            "controller_address": connected.leads_to.as_ref().map(|l| &l.address),
            "engines": connected.engines,
            "client_file": connected.client_file,
            "tunnel_pid": connected.tunnel_pid,
            "reused": connected.reused,
            "took": connected.took.as_secs_f64(),
        }));
    }
    report(&connected, context);
    Ok(())
}

fn report(connected: &Connected, context: &Context) {
    let options = context.options();
    let to = match &connected.leads_to {
        Some(leads_to) => {
            let name = describe_cluster(&leads_to.profile, &leads_to.cluster_id);
            let host = leads_to.host.as_deref().map(|h| format!(", controller on {h}")).unwrap_or_default();
            format!("{name} on {}{host}", connected.destination)
        }
        None => connected.destination.clone(),
    };
    let engines = match connected.engines {
        Some(n) => format!(", with {}", counted(n as u64, "engine")),
        None => "; not a pcluster controller: only ipyparallel's Client can use it".into(),
    };
    let how = if connected.reused {
        "is already connected to"
    } else {
        "connected to"
    };
    context.note(format!(
        "{} {how} {to}{engines}, in {:.1} s",
        context.describe_cluster(),
        connected.took.as_secs_f64()
    ));
    context.note(format!(
        "next: pcluster map{options} FILE.py:FUNCTION INPUTS.txt  (pcluster status{options}, pcluster disconnect{options})"
    ));
}
