//! Values for tasks of `--reduce`: their inputs name the tasks to fold, and their engines request the values.
use super::Core;
use super::effect::QueryKind;
use crate::model::{EngineUuid, TaskId};
use crate::wire::content::engine::{self, Values, ValuesRequest};
use bytes::Bytes;

/// Values in one request.
const MAX_VALUES: usize = 4096;

impl Core {
    pub(super) fn values_requested(&mut self, engine: &EngineUuid, mut request: ValuesRequest) {
        request.of.truncate(MAX_VALUES);
        let task = request.task;
        let is_its = self
            .maps
            .in_flight_at(TaskId::new(task.map, task.index), task.run, engine)
            .is_some();
        let reduced = self.maps.get(task.map).and_then(|map| map.options().reduces.as_ref());
        let reduced = reduced.map(|reduces| reduces.map);
        let may = is_its && request.of.iter().all(|of| of.map == task.map || Some(of.map) == reduced);
        let Some(first) = request.of.first().copied() else { return };
        if reduced.is_none() || !may {
            let values = Values {
                task,
                first,
                start: request.start,
                values: Vec::new(),
                error: Some(format!(
                    "task {}.{} is not a running task of this engine that reduces {first}",
                    task.map, task.index
                )),
            };
            return self.out.send_to_engine(engine, engine::VALUES, &values);
        }
        let engine = engine.clone();
        self.out.own_query(QueryKind::Values { engine, request });
    }

    pub(super) fn values_found(&mut self, engine: &EngineUuid, values: &Values, buffers: Vec<Bytes>) {
        self.out.send_to_engine_with(engine, engine::VALUES, values, buffers);
    }
}
