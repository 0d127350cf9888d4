//! Asks why a map does not get on, while none of its tasks ends.
use crate::cli::explained::{self, Jobs, Line, WITHOUT_PROGRESS};
use crate::cli::output::times;
use crate::cli::progress::Progress;
use crate::client::{Client, ExplainRequest};
use crate::model::MapId;
use crate::model::explanation::ReasonKind;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How often the question is repeated.
const REPEAT: Duration = Duration::from_secs(5);

pub(super) struct Stalled {
    client: Client,
    map: MapId,
    jobs: Jobs,
    done: u64,
    since: Instant,
    asked: Option<Instant>,
    asking: Option<JoinHandle<Option<Line>>>,
    /// The reasons that were reported.
    reported: Option<Vec<ReasonKind>>,
}

impl Stalled {
    pub(super) fn new(client: &Client, map: MapId, jobs: Jobs) -> Stalled {
        Stalled {
            client: client.clone(),
            map,
            jobs,
            done: 0,
            since: Instant::now(),
            asked: None,
            asking: None,
            reported: None,
        }
    }

    /// Notes the number of tasks that have ended; if it has grown, an explanation is outdated.
    pub(super) fn note(&mut self, done: u64, progress: &mut Progress) {
        if done != self.done {
            self.done = done;
            self.since = Instant::now();
            self.stop();
            progress.explain(None, 0);
        }
    }

    /// Asks, if the map has not got on for long enough.
    pub(super) fn begin(&mut self) {
        let is_recent = self.asked.is_some_and(|asked| asked.elapsed() < REPEAT);
        if self.asking.is_some() || is_recent || self.since.elapsed() < WITHOUT_PROGRESS {
            return;
        }
        self.asked = Some(Instant::now());
        let (client, map, jobs) = (self.client.clone(), self.map, self.jobs.clone());
        let ask = async move { explained::one_line(&client, ExplainRequest::Map(map), &jobs, times::now()).await };
        self.asking = Some(tokio::spawn(ask));
    }

    /// The answer, once; never without a question.
    pub(super) async fn explained(&mut self) -> Option<Line> {
        let Some(asking) = &mut self.asking else {
            return std::future::pending().await;
        };
        let line = asking.await;
        self.asking = None;
        line.ok().flatten()
    }

    /// Whether these reasons have not been reported yet. They count as reported from now on.
    pub(super) fn is_new(&mut self, line: &Line) -> bool {
        self.reported.replace(line.kinds.clone()).as_ref() != Some(&line.kinds)
    }

    fn stop(&mut self) {
        if let Some(asking) = self.asking.take() {
            asking.abort();
        }
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        self.stop();
    }
}
