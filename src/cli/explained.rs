//! Explanations in one line: why a task or map waits, or where a task is. For `explain`, `results`, `map` and `wait`.
use super::Context;
use crate::client::{Client, ExplainReply, ExplainRequest};
use crate::cluster::outlook::{self, Absent};
use crate::launchers::Stage;
use crate::model::UnixTime;
use crate::model::explanation::{OpenMap, Placed, ReasonKind, WaitReasons, about};
use crate::profile::ProfileDir;
use std::time::Duration;

/// Maps are explained after this time in which no task of them has ended.
pub(crate) const WITHOUT_PROGRESS: Duration = Duration::from_secs(10);
/// How long batch systems may take to answer when the line is only a supplement.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Where to find the jobs of a cluster.
#[derive(Clone)]
pub(crate) struct Jobs {
    profile: Option<ProfileDir>,
    cluster_id: String,
}

impl Jobs {
    pub(crate) fn of(context: &Context) -> Jobs {
        Jobs {
            profile: context.profile_dir().ok(),
            cluster_id: context.cluster_id.clone(),
        }
    }

    /// Engines that do not run. Asks batch systems.
    pub(crate) fn absent(&self) -> Vec<Absent> {
        self.profile
            .as_ref()
            .map(|profile| outlook::absent(profile, &self.cluster_id))
            .unwrap_or_default()
    }
}

/// An explanation in one line.
pub(crate) struct Line {
    pub text: String,
    /// What the reasons are about; empty for work that engines have.
    pub kinds: Vec<ReasonKind>,
}

/// Why this task or map waits or where it is; None if it is finished, or the controller does not say.
pub(crate) async fn one_line(client: &Client, request: ExplainRequest, jobs: &Jobs, now: UnixTime) -> Option<Line> {
    let reply = client.explain(&request).await.ok()?;
    let absent = match reply.waiting {
        Some(_) => {
            let jobs = jobs.clone();
            let asked = tokio::task::spawn_blocking(move || jobs.absent());
            let answer = tokio::time::timeout(MAX_WAIT, asked).await;
            answer.ok().and_then(Result::ok).unwrap_or_default()
        }
        None => Vec::new(),
    };
    let reasons = reply.waiting.iter().flat_map(|waiting| &waiting.reasons);
    Some(Line {
        text: describe(&reply, &absent, now)?,
        kinds: reasons.map(|reason| reason.kind.clone()).collect(),
    })
}

pub(crate) fn describe(reply: &ExplainReply, absent: &[Absent], now: UnixTime) -> Option<String> {
    let waiting = reply.waiting.as_ref().map(|waiting| waits(waiting, absent));
    let placed = reply.placed.as_ref().map(|placed| place(placed, now));
    let running = reply.map.as_ref().filter(|map| map.with_engines > 0).map(progress);
    let parts: Vec<String> = running.into_iter().chain(waiting.or(placed)).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// `waiting: 0 of 12 engines can take it now: …; 4 jobs are queued in slurm (Resources)`
pub(crate) fn waits(waiting: &WaitReasons, absent: &[Absent]) -> String {
    let mut text = format!("waiting: {waiting}");
    // Of processes that have ended, only the last ones explain something.
    let explains = |absent: &&Absent| absent.stage != Stage::Ended || waiting.engines == 0;
    let is_independent = waiting
        .reasons
        .iter()
        .any(|r| matches!(r.kind, ReasonKind::AfterMap | ReasonKind::MaxRunning));
    if !is_independent {
        absent
            .iter()
            .filter(explains)
            .for_each(|absent| text.push_str(&format!("; {absent}")));
    }
    text
}

/// `running on engine 3 (node1) for 3 min`, `queued on engine 3 (node1) behind 2 tasks`
pub(crate) fn place(placed: &Placed, now: UnixTime) -> String {
    let engine = engine_name(placed.engine.0, &placed.host);
    let mut text = match (placed.began, placed.ahead) {
        (Some(began), _) => format!("running on {engine} for {}", about(now.since(began))),
        (None, 0) => format!("on {engine}, which runs it now or next"),
        (None, 1) => format!("queued on {engine} behind 1 task"),
        (None, ahead) => format!("queued on {engine} behind {ahead} tasks"),
    };
    if placed.cancelled {
        text.push_str("; it is being cancelled");
    }
    if let Some(unsure) = &placed.unsure {
        text.push_str(&format!("; {unsure}"));
    }
    text
}

/// `4 tasks are with engines, the longest for 3 min`
fn progress(map: &OpenMap) -> String {
    let mut text = match map.with_engines {
        1 => "1 task is with an engine".to_string(),
        n => format!("{n} tasks are with engines"),
    };
    if let Some(longest) = map.longest_s {
        let which = if map.with_engines == 1 { "running" } else { "the longest" };
        text.push_str(&format!(", {which} for {}", about(longest)));
    }
    text
}

/// `engine 3 (node1)`
pub(crate) fn engine_name(id: u32, host: &str) -> String {
    match host {
        "" => format!("engine {id}"),
        host => format!("engine {id} ({host})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::EngineId;
    use crate::model::explanation::Reason;

    #[test]
    fn a_task_with_an_engine() {
        let placed = |ahead, began: Option<f64>| Placed {
            engine: EngineId(3),
            host: "node1".into(),
            ahead,
            began: began.map(UnixTime),
            unsure: None,
            cancelled: false,
        };
        let now = UnixTime(1000.0);
        assert_eq!(place(&placed(2, None), now), "queued on engine 3 (node1) behind 2 tasks");
        assert_eq!(place(&placed(0, Some(820.0)), now), "running on engine 3 (node1) for 3 min");
        let mut unsure = placed(0, None);
        unsure.unsure = Some("the engine does not answer".into());
        unsure.cancelled = true;
        assert_eq!(
            place(&unsure, now),
            "on engine 3 (node1), which runs it now or next; it is being cancelled; the engine does not answer"
        );
    }

    #[test]
    fn jobs_follow_the_reasons_unless_they_do_not_matter() {
        let absent: Vec<Absent> = vec![Absent::queued("slurm", 4, "Resources")];
        let mut waiting = WaitReasons {
            reasons: vec![Reason::general(ReasonKind::NoEngines, "there are no engines")],
            ..WaitReasons::default()
        };
        assert_eq!(
            waits(&waiting, &absent),
            "waiting: there are no engines; 4 jobs are queued in slurm (Resources)"
        );
        waiting.reasons = vec![Reason::general(ReasonKind::AfterMap, "it starts after map 3")];
        assert_eq!(waits(&waiting, &absent), "waiting: it starts after map 3");
    }
}
