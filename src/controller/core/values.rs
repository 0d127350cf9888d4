//! Values that tasks of `--reduce` fold: their inputs name the tasks, and their engines ask for the values.
use super::{Ask, Core, Effect, Query};
use crate::model::EngineUuid;
use crate::wire::content::engine::{self as say, Values, ValuesRequest};
use bytes::Bytes;

/// Values in one request.
const MOST: usize = 4096;

impl Core {
    pub(super) fn values_requested(&mut self, engine: &EngineUuid, mut request: ValuesRequest) {
        request.of.truncate(MOST);
        let task = request.task;
        let map = self.maps.get(&task.map);
        let is_its = map
            .and_then(|map| map.in_flight.get(&task.index))
            .is_some_and(|t| t.run == task.run && t.engine == *engine);
        let reduced = map
            .and_then(|map| map.definition.options.reduces.as_ref())
            .map(|reduces| reduces.map);
        let may = is_its && request.of.iter().all(|of| of.map == task.map || Some(of.map) == reduced);
        let Some(first) = request.of.first().copied() else { return };
        if reduced.is_none() || !may {
            let values = Values {
                task,
                first,
                start: request.start,
                values: Vec::new(),
                error: Some(format!(
                    "task {}.{} is not one of this engine that folds values of {first}",
                    task.map, task.index
                )),
            };
            return self.tell_engine(engine, say::VALUES, &values);
        }
        let engine = engine.clone();
        self.effects.push(Effect::Query(Query {
            client: Bytes::new(),
            request: String::new(),
            parent: Bytes::new(),
            ask: Ask::Values { engine, request },
        }));
    }

    pub(super) fn values_found(&mut self, engine: &EngineUuid, values: &Values, buffers: Vec<Bytes>) {
        self.tell_engine_with(engine, say::VALUES, values, buffers);
    }
}
