//! Tests on real files. This module has what they share; by subject: `steps` (the lifecycle of a task), `queries`, `requests`, `restart`,
//! `expiry`, `jobs`, `files` (unusable ones), `large` (buffers), `outputs` (output of tasks), `agreement` (random changes against a plain model), `versions` (old files, the views, the documentation).
mod agreement;
mod expiry;
mod files;
mod jobs;
mod large;
mod outputs;
mod queries;
mod requests;
mod restart;
mod steps;
mod versions;

use super::{Durability, Reader, Writer};
use crate::model::change::Change;
use crate::model::definition::{CallSource, MapDefinition, MapOptions, Work};
use crate::model::engine::EngineFacts;
use crate::model::node::NodeFacts;
use crate::model::output::Stream;
use crate::model::query::{MapQuery, TaskQuery};
use crate::model::task::{Counts, Outcome, TaskRow, TaskState};
use crate::model::{EngineId, MapId, TaskId, UnixTime};
use bytes::Bytes;
use serde_json::value::RawValue;
use std::path::PathBuf;

pub(super) struct Db {
    pub directory: tempfile::TempDir,
    pub writer: Writer,
}

impl Db {
    pub(super) fn new() -> Db {
        let directory = tempfile::tempdir().unwrap();
        let writer = Writer::open(&directory.path().join("t.db"), Durability::Normal).unwrap();
        Db { directory, writer }
    }
    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("t.db")
    }
    pub(super) fn apply(&mut self, changes: &[Change]) {
        self.writer.apply(changes).unwrap();
    }
    pub(super) fn reader(&self) -> Reader {
        Reader::open(&self.path()).unwrap()
    }
    pub(super) fn task(&self, map: u32, index: u32) -> TaskRow {
        let query = TaskQuery {
            tasks: vec![task(map, index)],
            ..TaskQuery::default()
        };
        let (mut rows, matching) = self.reader().tasks(&query).unwrap();
        assert_eq!(matching, 1);
        rows.remove(0)
    }
    pub(super) fn counts(&self, map: u32) -> Counts {
        let query = MapQuery {
            maps: vec![MapId(map)],
            ..MapQuery::default()
        };
        self.reader().maps(&query).unwrap()[0].counts
    }
    /// A map of `tasks` ready tasks, each with its index as argument.
    pub(super) fn add_map(&mut self, map: u32, tasks: u32) {
        self.apply(&[map_added(map), tasks_added(map, 0, tasks, TaskState::Ready), closed(map, tasks)]);
    }
}

pub(super) fn task(map: u32, index: u32) -> TaskId {
    TaskId::new(MapId(map), index)
}

pub(super) fn definition() -> MapDefinition {
    MapDefinition {
        work: Work::Call {
            from: CallSource::File {
                name: "pi.py".into(),
                text: "def f(x):\n    return x\n".into(),
            },
            function: "f".into(),
        },
        options: MapOptions::default(),
    }
}

pub(super) fn map_added(map: u32) -> Change {
    Change::MapAdded {
        map: MapId(map),
        definition: Box::new(definition()),
        client: "client".into(),
        submitted: UnixTime(1000.0 + f64::from(map)),
    }
}

pub(super) fn tasks_added(map: u32, first: u32, tasks: u32, state: TaskState) -> Change {
    Change::TasksAdded {
        map: MapId(map),
        first,
        inputs: (first..first + tasks).map(|i| Bytes::from(format!("[{i}]"))).collect(),
        state,
        submitted: UnixTime(1000.5),
    }
}

pub(super) fn closed(map: u32, total: u32) -> Change {
    Change::MapClosed { map: MapId(map), total }
}

pub(super) fn assigned(map: u32, first: u32, count: u32, run: u32, engine: u32) -> Change {
    Change::TasksAssigned {
        map: MapId(map),
        first,
        count,
        run,
        engine: EngineId(engine),
    }
}

pub(super) fn begun(map: u32, index: u32, run: u32, engine: u32) -> Change {
    Change::TaskBegun {
        task: task(map, index),
        run,
        engine: EngineId(engine),
        started: UnixTime(2000.0),
    }
}

pub(super) fn wrote(task: TaskId, stream: Stream, bytes: &[u8]) -> Change {
    Change::OutputAdded {
        task,
        stream,
        bytes: Bytes::copy_from_slice(bytes),
    }
}

pub(super) fn ok(value: &str) -> Outcome {
    let mut outcome = Outcome::failure(TaskState::Ok, "", "", UnixTime(2000.0), UnixTime(2002.5));
    outcome.error = None;
    outcome.value = Some(RawValue::from_string(value.into()).unwrap());
    outcome
}

pub(super) fn failed(status: TaskState, ename: &str, evalue: &str) -> Outcome {
    Outcome::failure(status, ename, evalue, UnixTime(2000.0), UnixTime(2003.0))
}

pub(super) fn finished(map: u32, index: u32, run: u32, engine: u32, outcome: Outcome) -> Change {
    Change::TaskFinished {
        task: task(map, index),
        run,
        engine: Some(EngineId(engine)),
        outcome: Box::new(outcome),
    }
}

pub(super) fn engine(id: u32) -> Change {
    Change::EngineRegistered {
        id: EngineId(id),
        facts: Box::new(EngineFacts {
            uuid: format!("uuid-{id}").as_str().into(),
            host: format!("node{id}"),
            pid: 100 + id,
            version: "0.1.0".into(),
            python: "3.11.7 (/usr/bin/python3)".into(),
            capabilities: vec!["call".into(), "command".into()],
            job: "4711.3".into(),
            ends: Some(UnixTime(9e9)),
            node: NodeFacts {
                cpus: 4,
                ..NodeFacts::default()
            },
        }),
        at: UnixTime(500.0),
    }
}
