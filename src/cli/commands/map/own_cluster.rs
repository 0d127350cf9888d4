//! `map -n N`: a cluster for one map, stopped again however the map ends. It is the profile's, so that `pcluster results`
//! has the map among the others.
use crate::cli::commands::start::{Bar, interruptible};
use crate::cli::{CommandError, Context, Exit};
use crate::client::MapsRequest;
use crate::cluster::{self, Condition, StartOptions};
use crate::model::MapId;

/// Runs `work` with a cluster: the one that runs, or one of `n` engines for this only. `work` is told whether it stays.
pub fn with_cluster(
    n: Option<u32>,
    context: &Context,
    work: impl FnOnce(bool) -> Result<Exit, CommandError>,
) -> Result<Exit, CommandError> {
    let Some(n) = n else { return work(true) };
    let profile = context.profile_dir()?;
    if cluster::status(&profile, &context.cluster_id).is_some_and(|cluster| cluster.state == Condition::Running) {
        context.say(format!(
            "note: a cluster is running in {}: it is used, and -n has no effect",
            context.cluster_in_words()
        ));
        return work(true);
    }
    let options = StartOptions {
        n: Some(n),
        ..StartOptions::new(profile.clone(), &context.cluster_id)
    };
    let mut bar = Bar::new(context);
    interruptible(context, cluster::start(options, &mut |progress| bar.show(progress)))?;
    bar.clear();
    context.say_more(format!("a cluster of {n} engines for this map: {}", context.cluster_in_words()));
    let result = work(false);
    if let Ok(others) = maps_of_others(context)
        && !others.is_empty()
    {
        let list: Vec<String> = others.iter().map(MapId::to_string).collect();
        context.say(format!(
            "note: the cluster stays, because others run maps on it meanwhile ({})",
            list.join(", ")
        ));
        context.say(format!("hint: pcluster stop{}", context.options()));
        return result;
    }
    if let Err(error) = context.block_on(cluster::stop(&profile, &context.cluster_id, &mut |_| {}))? {
        context.say(format!("warning: the cluster of this map could not be stopped: {error}"));
        context.say(format!("hint: pcluster stop{}", context.options()));
    }
    context.say_more(format!(
        "the cluster is stopped; the results stay: pcluster results{}",
        context.options()
    ));
    result
}

/// Maps that someone else has submitted since the cluster was started and that are not finished. Those of this command
/// are closed and cancelled, or finished, except for one whose inputs could not all be sent.
fn maps_of_others(context: &Context) -> Result<Vec<MapId>, CommandError> {
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
