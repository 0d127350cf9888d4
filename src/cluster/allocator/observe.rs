//! Asks the launchers about the engines of elastic launches, and combines the answers with the controller's.
use super::super::elastic::observation::{Activity, JobName, JobPhase, ObservedEngine, ObservedJob};
use crate::client::StatusReply;
use crate::launchers::{ElasticLaunch, Launched, Launcher, MemberState, Stage};
use crate::model::EngineUuid;
use crate::model::engine::{EngineState, EngineStatus};
use crate::sys::process;
use std::collections::HashMap;

/// Lines of a log that explain an end.
const LINES: usize = 5;

/// The member of each registered engine.
pub(super) type Owners = HashMap<EngineUuid, JobName>;

/// One member of an elastic launch on record.
pub(super) struct SeenMember {
    /// Its position: the launch, and the member in it.
    pub launch: usize,
    pub place: usize,
    pub job: ObservedJob,
    /// Its registered engines.
    pub engines: Vec<EngineStatus>,
}

/// `states`: for each launch on record, the state of each member.
pub(super) fn members(
    launches: &[Launched],
    states: &[Vec<MemberState>],
    launcher: &dyn Launcher,
    status: Option<&StatusReply>,
    known: &mut Owners,
) -> Vec<SeenMember> {
    let mut seen = Vec::new();
    let registered = status.map(|status| status.engines.as_slice()).unwrap_or_default();
    for (at, (launched, states)) in launches.iter().zip(states).enumerate() {
        let Some(elastic) = &launched.elastic else { continue };
        let names = names(launched, elastic);
        find_owners(launched, &names, launcher, registered, known);
        for (place, name) in names.into_iter().enumerate() {
            let Some(state) = states.get(place) else { continue };
            let owned = registered.iter().filter(|engine| known.get(&engine.facts.uuid) == Some(&name));
            let engines: Vec<EngineStatus> = owned.cloned().collect();
            let job = observed(launched, elastic, place, name, state, &engines, launcher);
            seen.push(SeenMember {
                launch: at,
                place,
                job,
                engines,
            });
        }
    }
    seen
}

fn observed(
    launched: &Launched,
    elastic: &ElasticLaunch,
    place: usize,
    name: JobName,
    state: &MemberState,
    engines: &[EngineStatus],
    launcher: &dyn Launcher,
) -> ObservedJob {
    let is_job = place >= launched.processes.len();
    let member = launched.members().into_iter().nth(place);
    let reason = match state.stage {
        Stage::Ended => ending(launched, place, state, launcher),
        _ if state.reason.is_empty() => state.word().into(),
        _ => state.reason.clone(),
    };
    ObservedJob {
        name,
        launch: elastic.launch,
        shape: elastic.shape.clone(),
        engines: member.as_ref().map_or(1, |member| member.engines.max(1)),
        phase: JobPhase::of(state, is_job),
        reason,
        expected_start: None,
        ran_s: launched
            .processes
            .get(place)
            .and_then(|process| Some(process.id.age()?.as_secs_f64())),
        registered: engines.iter().map(engine).collect(),
        has_registered: !engines.is_empty(),
        is_leaving: member.is_some_and(|member| member.leaving),
        node: engines.first().map(|engine| engine.facts.node.clone()),
    }
}

/// The system's words, the end of the log, and the script.
fn ending(launched: &Launched, place: usize, state: &MemberState, launcher: &dyn Launcher) -> String {
    let words = [state.word().to_string(), state.reason.clone()]
        .into_iter()
        .filter(|w| !w.is_empty());
    let mut parts: Vec<String> = words.collect();
    let tail = launcher.log_tail(launched, place, LINES);
    let tail = tail
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" | ");
    parts.extend(Some(tail).filter(|tail| !tail.is_empty()));
    parts.extend(launched.jobs.first().map(|job| format!("script {}", job.script.display())));
    parts.join("; ")
}

fn engine(status: &EngineStatus) -> ObservedEngine {
    let activity = match &status.state {
        EngineState::Silent => Activity::Silent,
        EngineState::Unavailable if status.assigned == 0 => Activity::Unusable,
        _ if status.assigned == 0 => Activity::Idle,
        _ => Activity::Busy,
    };
    ObservedEngine {
        id: status.id,
        activity,
        finished: status.finished,
    }
}

/// The unique name of each member.
fn names(launched: &Launched, elastic: &ElasticLaunch) -> Vec<JobName> {
    let process = |process: &crate::launchers::Process| match &process.on {
        Some(host) => format!("launch {}, process {} on {host}", elastic.launch, process.id.pid),
        None => format!("launch {}, process {}", elastic.launch, process.id.pid),
    };
    let elements = launched.jobs.iter().flat_map(|job| {
        job.elements.iter().map(move |element| match job.array {
            true => format!("{}.{element}", job.name),
            false => job.name.clone(),
        })
    });
    launched.processes.iter().map(process).chain(elements).map(JobName).collect()
}

/// Finds the members of this launch to which registered engines belong that are not known yet.
fn find_owners(launched: &Launched, names: &[JobName], launcher: &dyn Launcher, registered: &[EngineStatus], known: &mut Owners) {
    for engine in registered {
        if !known.contains_key(&engine.facts.uuid)
            && let Some(name) = owner(launched, launcher, engine).and_then(|place| names.get(place))
        {
            known.insert(engine.facts.uuid.clone(), name.clone());
        }
    }
}

pub(super) fn owner(launched: &Launched, launcher: &dyn Launcher, engine: &EngineStatus) -> Option<usize> {
    if let Some(hosts) = launcher.remote_hosts() {
        let process = [(engine.facts.host.clone(), engine.facts.pid)];
        return hosts.indices_of(launched, &process).first().copied();
    }
    let mut elements = launched
        .jobs
        .iter()
        .flat_map(|job| job.elements.iter().map(move |element| (job, *element)));
    if let Some(at) = elements.position(|(job, element)| job.is_reported_as(&engine.facts.job, element)) {
        return Some(launched.processes.len() + at);
    }
    let own = process::host();
    if engine.facts.host != own || launched.host != own {
        return None;
    }
    // Its supervisor leads its session.
    let session = process::session_of(engine.facts.pid);
    let is_it = |pid: u32| pid == engine.facts.pid || Some(pid) == session;
    launched.processes.iter().position(|process| is_it(process.id.pid))
}
