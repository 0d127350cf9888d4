//! Streams the results of a map in input order, with the counts of all its tasks.
use super::{Client, ClientError};
use crate::model::MapId;
use crate::model::definition::MapDefinition;
use crate::model::task::{Counts, TaskRow};
use crate::wire::content::client::{FirstWatch, MapRequest, WATCH, WatchReply, WatchRequest};
use bytes::Bytes;
use std::time::{Duration, Instant};

/// The maximum number of results in one reply.
const MAX_RESULTS: u32 = 1_000;

/// The minimum interval between requests while results trickle in: each request costs the controller a query.
const MIN_PAUSE: Duration = Duration::from_millis(1);
const MAX_PAUSE: Duration = Duration::from_millis(40);

/// A snapshot of a map.
#[derive(Debug)]
pub struct Update {
    pub counts: Counts,
    /// All inputs have arrived and every task is done. Results may remain to be fetched: see [`Watch::next`].
    pub complete: bool,
    /// Number of engines that can run the map's tasks.
    pub engines: u32,
    /// The next results in input order; empty if the next task is not done.
    pub results: Vec<TaskRow>,
}

/// Follows one map.
pub struct Watch {
    client: Client,
    map: MapId,
    from: u32,
    want_results: bool,
    without_inputs: bool,
    every: Duration,
    ended: bool,
    pause: Duration,
    /// A first update that came with the map.
    first: Option<Update>,
}

impl From<WatchReply> for Update {
    fn from(reply: WatchReply) -> Update {
        Update {
            counts: reply.counts,
            complete: reply.complete,
            engines: reply.engines,
            results: reply.results,
        }
    }
}

impl Client {
    /// Submits a map with all its inputs and waits for its first result, in one request. Answered when there is a result, or after
    /// `every`; see [`Client::watch`]. For maps that fit into one message.
    pub async fn run(&self, definition: MapDefinition, inputs: &[Bytes], every: Duration) -> Result<(MapId, Watch), ClientError> {
        let request = MapRequest {
            key: uuid::Uuid::new_v4().simple().to_string(),
            definition,
            with_bundle: false,
            whole: true,
            watch: Some(FirstWatch {
                limit: MAX_RESULTS,
                wait_ms: milliseconds(every),
                without_inputs: false,
            }),
        };
        let buffer = Bytes::from(inputs.join(&b'\n'));
        let reply = self.send_map(request, vec![buffer], Some(every)).await?;
        let mut watch = self.watch(reply.map, every);
        watch.first = reply.update.map(Update::from);
        Ok((reply.map, watch))
    }

    /// Follows a map from its first result. Yields an update with every result, and at least after `every`.
    pub fn watch(&self, map: MapId, every: Duration) -> Watch {
        Watch {
            client: self.clone(),
            map,
            from: 0,
            want_results: true,
            without_inputs: false,
            every,
            ended: false,
            pause: Duration::ZERO,
            first: None,
        }
    }

    /// The current counts of a map.
    pub async fn look(&self, map: MapId) -> Result<Update, ClientError> {
        Watch {
            want_results: false,
            ..self.watch(map, Duration::ZERO)
        }
        .ask(Duration::ZERO, None)
        .await
    }
}

impl Watch {
    /// Only counts, no results.
    pub fn counts_only(mut self) -> Watch {
        self.want_results = false;
        self
    }

    /// Results without the inputs of tasks that did not fail.
    pub fn without_inputs(mut self) -> Watch {
        self.without_inputs = true;
        self
    }

    /// The next update; None after the one that brought the last result of a complete map.
    pub async fn next(&mut self) -> Result<Option<Update>, ClientError> {
        if self.ended {
            return Ok(None);
        }
        let done = match self.want_results {
            true => None,
            false => Some(u64::MAX),
        };
        // A zero timer would still wait for the next millisecond.
        if !self.pause.is_zero() {
            tokio::time::sleep(self.pause).await;
        }
        let asked = Instant::now();
        let update = match self.first.take() {
            Some(first) => first,
            None => self.ask(self.every, done).await?,
        };
        self.pause = next_pause(self.pause, update.results.len(), update.counts.pending(), asked.elapsed());
        if let Some(last) = update.results.last() {
            self.from = last.task.index.saturating_add(1);
        }
        // A complete map without a result at `from` has no more (they may have been purged).
        let all_fetched = update.results.is_empty() || u64::from(self.from) >= update.counts.total;
        self.ended = update.complete && all_fetched;
        Ok(Some(update))
    }

    async fn ask(&self, wait: Duration, done: Option<u64>) -> Result<Update, ClientError> {
        let request = WatchRequest {
            map: self.map,
            from: self.from,
            limit: if self.want_results { MAX_RESULTS } else { 0 },
            wait_ms: milliseconds(wait),
            done,
            without_inputs: self.without_inputs,
        };
        let reply: WatchReply = self.client.request_for_rows(WATCH, &request, Vec::new(), wait).await?;
        Ok(reply.into())
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The pause before the next request. Full replies and slow ones need none, nor does a result whose input is not submitted yet: a
/// client that submits one input after the other waits for each value.
fn next_pause(pause: Duration, results: usize, pending: u64, took: Duration) -> Duration {
    let is_trickle = (1..MAX_RESULTS as usize / 2).contains(&results) && took < MAX_PAUSE;
    match is_trickle && pending > 0 {
        true => (pause * 2).clamp(MIN_PAUSE, MAX_PAUSE),
        false => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_pause_while_results_trickle_in() {
        let soon = Duration::from_millis(3);
        let mut pause = Duration::ZERO;
        for expected in [1, 2, 4, 8, 16, 32, 40, 40] {
            pause = next_pause(pause, 1, 7, soon);
            assert_eq!(pause, Duration::from_millis(expected));
        }
        assert_eq!(next_pause(pause, 800, 7, soon), Duration::ZERO, "a full reply");
        assert_eq!(next_pause(pause, 1, 7, MAX_PAUSE), Duration::ZERO, "a slow one");
        assert_eq!(next_pause(pause, 1, 0, soon), Duration::ZERO, "nothing else is running");
    }
}
