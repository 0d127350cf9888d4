//! The records of a cluster: from the running controller, or from the database file of a stopped one.
use super::explained::{self, Jobs};
use super::output::times;
use super::values::LongValue;
use super::{CommandError, Context, ErrorKind};
use crate::client::{Client, ClientError, ExplainRequest, JobsRequest, MapsRequest};
use crate::db::Reader;
use crate::model::definition::MapDefinition;
use crate::model::job::JobRow;
use crate::model::output::Stream;
use crate::model::query::{Column, Comparison, Condition, ConditionValue, MapQuery, TaskQuery};
use crate::model::task::{AttemptRow, MapRow, TaskRow};
use crate::model::{MapId, TaskId};
use bytes::Bytes;
use std::collections::HashSet;

/// The number of rows per request.
pub(crate) const PORTION: u64 = 2000;

/// The number of bytes of an output per request.
const PIECE: usize = 1 << 20;

pub(crate) enum Records<'a> {
    Running { context: &'a Context, client: Client },
    Stopped(Reader),
}

/// Details that are not part of a task's row.
#[derive(Default)]
pub(crate) struct Details {
    pub definition: Option<MapDefinition>,
    /// Earlier attempts, oldest first.
    pub earlier: Vec<AttemptRow>,
    /// Why an unfinished task waits, or where it is.
    pub explanation: Option<String>,
}

impl<'a> Records<'a> {
    pub(crate) fn open(context: &'a Context) -> Result<Records<'a>, CommandError> {
        let running = match context.client() {
            Ok(client) => return Ok(Records::Running { context, client }),
            Err(error) => error,
        };
        // Only if no controller is running: then no other process uses the file.
        if running.kind != ErrorKind::NotFound {
            return Err(running);
        }
        let path = context.profile_dir()?.database_file(&context.cluster_id);
        if !path.exists() {
            return Err(running.hint(format!("no records exist: no file {}", path.display())));
        }
        context.note_verbose(format!("no cluster is running; reading {}", path.display()));
        Ok(Records::Stopped(Reader::open(&path)?))
    }

    /// The records of a running cluster.
    pub(crate) fn of(context: &'a Context, client: &Client) -> Records<'a> {
        Records::Running {
            context,
            client: client.clone(),
        }
    }

    pub(crate) fn maps(&self, query: &MapQuery) -> Result<Vec<MapRow>, CommandError> {
        match self {
            Records::Running { context, client } => {
                let request = MapsRequest {
                    maps: query.maps.clone(),
                    since: query.since,
                    label: query.label.clone(),
                    limit: query.limit,
                };
                Ok(context.block_on(client.maps(&request))??)
            }
            Records::Stopped(reader) => Ok(reader.maps(query)?),
        }
    }

    /// One page: the rows, and the number of matches without `limit` and `offset`.
    pub(crate) fn tasks(&self, query: &TaskQuery) -> Result<(Vec<TaskRow>, u64), CommandError> {
        match self {
            Records::Running { context, client } => Ok(context.block_on(client.tasks(query.clone()))??),
            Records::Stopped(reader) => Ok(reader.tasks(query)?),
        }
    }

    /// Every matching row, fetched in pages.
    pub(crate) fn each_task(
        &self,
        query: &TaskQuery,
        take: &mut dyn FnMut(TaskRow) -> Result<(), CommandError>,
    ) -> Result<(), CommandError> {
        if query.sort.is_none() && query.limit.is_none() && query.offset == 0 && query.tasks.is_empty() {
            self.each_by_id(query, take)
        } else {
            self.each_by_offset(query, take)
        }
    }

    /// Pages by id: no row is skipped or repeated while a cluster is running, and every page costs the same.
    fn each_by_id(&self, query: &TaskQuery, take: &mut dyn FnMut(TaskRow) -> Result<(), CommandError>) -> Result<(), CommandError> {
        let maps = match query.maps.is_empty() {
            false => query.maps.clone(),
            true => self.maps(&MapQuery::default())?.iter().map(|row| row.map).collect(),
        };
        for map in maps {
            let mut last: Option<u32> = None;
            loop {
                let mut portion = TaskQuery {
                    maps: vec![map],
                    limit: Some(PORTION),
                    ..query.clone()
                };
                portion.conditions.extend(last.map(after_index));
                let (rows, _) = self.tasks(&portion)?;
                let full = rows.len() as u64 == PORTION;
                for row in rows {
                    last = Some(row.task.index);
                    take(row)?;
                }
                if !full {
                    break;
                }
            }
        }
        Ok(())
    }

    fn each_by_offset(&self, query: &TaskQuery, take: &mut dyn FnMut(TaskRow) -> Result<(), CommandError>) -> Result<(), CommandError> {
        let (mut offset, mut left) = (query.offset, query.limit.unwrap_or(u64::MAX));
        while left > 0 {
            let limit = left.min(PORTION);
            let (rows, _) = self.tasks(&TaskQuery {
                limit: Some(limit),
                offset,
                ..query.clone()
            })?;
            let count = rows.len() as u64;
            rows.into_iter().try_for_each(&mut *take)?;
            if count < limit {
                break;
            }
            (offset, left) = (offset + count, left - count);
        }
        Ok(())
    }

    /// Why an unfinished task waits, or where it is; None if the controller does not say.
    pub(crate) fn explanation(&self, task: TaskId) -> Result<Option<String>, CommandError> {
        let Records::Running { context, client } = self else {
            return Ok(None);
        };
        let jobs = Jobs::of(context);
        let line = context.block_on(explained::one_line(client, ExplainRequest::Task(task), &jobs, times::now()))?;
        Ok(line.map(|line| line.text))
    }

    /// The recorded batch jobs.
    pub(crate) fn jobs(&self) -> Result<Vec<JobRow>, CommandError> {
        match self {
            Records::Running { context, client } => {
                let request = JobsRequest {
                    list: true,
                    ..JobsRequest::default()
                };
                Ok(context.block_on(client.jobs(&request))??.jobs)
            }
            Records::Stopped(reader) => Ok(reader.jobs()?),
        }
    }

    pub(crate) fn details(&self, task: TaskId) -> Result<Details, CommandError> {
        match self {
            Records::Running { context, client } => {
                let reply = match context.block_on(client.details(task))? {
                    Ok(reply) => reply,
                    // An older controller does not support this request: show the row only.
                    Err(error @ ClientError::Refused { .. }) => {
                        context.note_verbose(error);
                        return Ok(Details::default());
                    }
                    Err(error) => return Err(error.into()),
                };
                Ok(Details {
                    definition: reply.definition,
                    earlier: reply.earlier,
                    explanation: None,
                })
            }
            Records::Stopped(reader) => Ok(Details {
                definition: reader.map_definition(task.map)?,
                earlier: reader.attempts(task)?,
                explanation: None,
            }),
        }
    }

    /// A part of a task's output (of an earlier run, if given): its total size, and the bytes from `start`.
    pub(crate) fn output(&self, task: TaskId, run: Option<u32>, stream: Stream, start: u64) -> Result<(u64, Bytes), CommandError> {
        match self {
            Records::Running { context, client } => Ok(context.block_on(client.output(task, run, stream, start))??),
            Records::Stopped(reader) => reader.output(task, run, stream, start, PIECE)?.ok_or_else(|| match run {
                Some(run) => CommandError::not_found(format!("task {task} has no run {run}")),
                None => self.no_such_task(task),
            }),
        }
    }

    /// Fetches a long value into its row.
    pub(crate) fn fetch_value(&self, row: &mut TaskRow) -> Result<(), CommandError> {
        let Some(size) = row.value_size else { return Ok(()) };
        let mut value = LongValue::new(row.task, size)?;
        while let Some(start) = value.missing() {
            value.add(self.output(row.task, Some(row.run), Stream::Value, start)?.1)?;
        }
        value.put_into(row)
    }

    /// An error if one of these maps does not exist.
    pub(crate) fn must_exist(&self, maps: &[MapId]) -> Result<(), CommandError> {
        if maps.is_empty() {
            return Ok(());
        }
        let found = self.maps(&MapQuery {
            maps: maps.to_vec(),
            ..MapQuery::default()
        })?;
        match maps.iter().find(|map| !found.iter().any(|row| row.map == **map)) {
            Some(map) => Err(no_such_map(*map)),
            None => Ok(()),
        }
    }

    /// An error if one of these tasks does not exist.
    pub(crate) fn tasks_must_exist(&self, tasks: &[TaskId]) -> Result<(), CommandError> {
        let mut found = HashSet::new();
        for portion in tasks.chunks(PORTION as usize) {
            let query = TaskQuery {
                tasks: portion.to_vec(),
                brief: true,
                ..TaskQuery::default()
            };
            found.extend(self.tasks(&query)?.0.iter().map(|row| row.task));
        }
        match tasks.iter().find(|task| !found.contains(task)) {
            Some(task) => Err(self.no_such_task(*task)),
            None => Ok(()),
        }
    }

    /// The error for a missing task, with the range of its map.
    pub(crate) fn no_such_task(&self, task: TaskId) -> CommandError {
        let query = MapQuery {
            maps: vec![task.map],
            ..MapQuery::default()
        };
        match self.maps(&query).ok().and_then(|rows| rows.into_iter().next()) {
            Some(map) => CommandError::not_found(format!("no task {task}")).hint(super::tables::extent(&map)),
            None => no_such_map(task.map),
        }
    }
}

pub(crate) fn no_such_map(map: MapId) -> CommandError {
    CommandError::not_found(format!("no map {map}")).hint("list the maps: pcluster results")
}

fn after_index(index: u32) -> Condition {
    Condition {
        column: Column::Index,
        comparison: Comparison::Greater,
        value: ConditionValue::Number(f64::from(index)),
    }
}
