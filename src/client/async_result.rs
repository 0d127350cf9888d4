//! A submitted map: readiness, progress, results.
use super::{Client, ClientError, watch::Watch};
use crate::model::task::{Counts, TaskRow};
use crate::model::{EngineId, MapId};
use crate::wire::content::client::Selection;
use std::time::Duration;

#[derive(Clone)]
pub struct AsyncResult {
    client: Client,
    map: MapId,
    engines: Vec<EngineId>,
}

impl AsyncResult {
    pub(super) fn new(client: Client, map: MapId, engines: Vec<EngineId>) -> Self {
        AsyncResult { client, map, engines }
    }
    pub fn map(&self) -> MapId {
        self.map
    }
    /// The engines of a map with targets: task `i` runs on the i-th.
    pub fn engines(&self) -> &[EngineId] {
        &self.engines
    }
    pub async fn ready(&self) -> Result<bool, ClientError> {
        Ok(self.client.look(self.map).await?.complete)
    }
    pub async fn progress(&self) -> Result<Counts, ClientError> {
        Ok(self.client.look(self.map).await?.counts)
    }
    pub fn watch(&self, every: Duration) -> Watch {
        self.client.watch(self.map, every)
    }
    /// Waits for completion; returns all tasks in input order, failed ones included.
    pub async fn get(&self) -> Result<Vec<TaskRow>, ClientError> {
        let mut watch = self.watch(Duration::from_secs(5));
        let mut rows = Vec::new();
        while let Some(update) = watch.next().await? {
            rows.extend(update.results);
        }
        Ok(rows)
    }
    pub async fn cancel(&self) -> Result<(), ClientError> {
        let maps = vec![self.map];
        self.client
            .cancel(Selection {
                maps,
                ..Selection::default()
            })
            .await
            .map(drop)
    }
}
