//! `pcluster connect`
use super::start::interruptible;
use super::{connection, counted};
use crate::cli::output::json;
use crate::cli::{CommandError, Context, Exit};
use crate::cluster::remote::{self, ConnectOptions, Connected};

/// Connect to a cluster on another host, through ssh
///
/// Finds the running cluster there, fetches its client connection file, and keeps a tunnel to its controller in the
/// background. From then on every command of this profile works on that cluster, and so does ipyparallel's Client. Your own
/// ssh configuration is used: names, keys, agent, jump hosts.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where ssh goes: [user@]host, a Host of ~/.ssh/config, or ssh://user@host:port
    destination: String,
    /// What the profile is called there [default: as here, or the only cluster that runs there]
    #[arg(long, value_name = "NAME")]
    remote_profile: Option<String>,
    /// What the cluster id is there
    #[arg(long, value_name = "ID")]
    remote_cluster_id: Option<String>,
    /// Where the profiles are there [default: its IPYTHONDIR, else ~/.ipython]
    #[arg(long, value_name = "DIR")]
    remote_ipython_dir: Option<String>,
}

pub fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
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

pub fn connect(options: ConnectOptions, context: &Context) -> Result<(), CommandError> {
    let profile = options.profile.clone();
    let connected = interruptible(context, remote::connect(options)).map_err(|e| e.instead_of_started("the tunnel is ended again"))?;
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
    say(&connected, context);
    Ok(())
}

fn say(connected: &Connected, context: &Context) {
    let options = context.options();
    let to = match &connected.leads_to {
        Some(leads_to) => {
            let name = connection::in_words(&leads_to.profile, &leads_to.cluster_id);
            let host = leads_to
                .host
                .as_deref()
                .map(|h| format!(", its controller on {h}"))
                .unwrap_or_default();
            format!("{name} on {}{host}", connected.destination)
        }
        None => connected.destination.clone(),
    };
    let engines = match connected.engines {
        Some(n) => format!(", with {}", counted(n as u64, "engine")),
        None => ": not pcluster's own controller, so for ipyparallel's Client only".into(),
    };
    let how = if connected.reused {
        "is connected already to"
    } else {
        "connected to"
    };
    context.say(format!(
        "{} {how} {to}{engines}, in {:.1} s",
        context.cluster_in_words(),
        connected.took.as_secs_f64()
    ));
    context.say(format!(
        "next: pcluster map{options} FILE.py:FUNCTION INPUTS.txt  (pcluster status{options}, pcluster disconnect{options})"
    ));
}
