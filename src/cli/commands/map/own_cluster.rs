//! `map -n N`: starts a cluster for one map and stops it however the map ends. It belongs to the profile, so that `pcluster
//! results` lists the map among the others.
use crate::cli::commands::start::StartProgressBar;
use crate::cli::interruptible::interruptible;
use crate::cli::{CommandError, Context, Exit};
use crate::client::MapsRequest;
use crate::cluster::{self, Condition, StartOptions};
use crate::model::MapId;

/// Runs `work` with a cluster: the running one, or a temporary one of `n` engines. Passes whether the cluster keeps running.
pub(crate) fn with_cluster(
    n: Option<u32>,
    context: &Context,
    work: impl FnOnce(bool) -> Result<Exit, CommandError>,
) -> Result<Exit, CommandError> {
    let Some(n) = n else { return work(true) };
    let profile = context.profile_dir()?;
    if cluster::status(&profile, &context.cluster_id).is_some_and(|cluster| cluster.state == Condition::Running) {
        context.note(format!(
            "note: using the running cluster in {}; -n is ignored",
            context.describe_cluster()
        ));
        return work(true);
    }
    let options = StartOptions {
        n: Some(n),
        ..StartOptions::new(profile.clone(), &context.cluster_id)
    };
    let mut bar = StartProgressBar::new(context);
    interruptible(context, cluster::start(options, &mut |progress| bar.show(progress)))?;
    bar.clear();
    context.note_verbose(format!(
        "started a cluster of {n} engines for this map: {}",
        context.describe_cluster()
    ));
    let result = work(false);
    if let Ok(others) = other_maps(context)
        && !others.is_empty()
    {
        let list: Vec<String> = others.iter().map(MapId::to_string).collect();
        context.note(format!(
            "note: the cluster keeps running, because it has other unfinished maps ({})",
            list.join(", ")
        ));
        context.note(format!("hint: pcluster stop{}", context.options()));
        return result;
    }
    if let Err(error) = context.block_on(cluster::stop(&profile, &context.cluster_id, &mut |_| {}))? {
        context.note(format!("warning: cannot stop the cluster of this map: {error}"));
        context.note(format!("hint: pcluster stop{}", context.options()));
    }
    context.note_verbose(format!(
        "the cluster is stopped; results remain available: pcluster results{}",
        context.options()
    ));
    result
}

/// Unfinished maps that others have submitted since the cluster was started. Those of this command are closed and cancelled,
/// or finished, except for one whose inputs could not all be sent.
fn other_maps(context: &Context) -> Result<Vec<MapId>, CommandError> {
    let client = context.client()?;
    let since = client.hello().started;
    let maps = context.block_on(client.maps(&MapsRequest {
        since: Some(since),
        ..MapsRequest::default()
    }))??;
    Ok(maps
        .iter()
        .filter(|map| map.closed && map.completed.is_none())
        .map(|map| map.map)
        .collect())
}
