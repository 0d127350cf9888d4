//! `--reduce FN`: folds the values of a map with a function of two values, on the engines, in order.
//!
//! Consecutive values form groups; one task folds each group from left to right; the results are folded again until one is
//! left. This is a second map, "reduce of map N", whose inputs are sent as groups finish. The function must be associative but
//! need not be commutative; few values (up to [`GROUP`]) are a plain left fold.
use super::follow::{Feed, Job, LongOutputs, MapEnd, Taken, fetch_value};
use super::interrupts::Interrupts;
use crate::cli::inputs::code::CodeArgs;
use crate::cli::progress::Progress;
use crate::cli::values::error_text;
use crate::cli::{CommandError, Context};
use crate::client::{Client, Feeding};
use crate::model::definition::{MapDefinition, MapOptions, Reduces, Work};
use crate::model::task::TaskRow;
use crate::model::{MapId, TaskId};
use bytes::Bytes;

/// The minimum number of values in a group (if there are as many),
const GROUP: usize = 16;
/// the maximum,
const LARGEST: usize = 5_000;
/// and their maximum size in bytes (but always two values).
const GROUP_BYTES: usize = 4 << 20;

/// A value that is on record, and of which of the map's tasks it is the reduction.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Item {
    first: TaskId,
    last: TaskId,
    /// The task that returned it.
    task: TaskId,
    size: usize,
}

impl Item {
    fn new(first: TaskId, last: TaskId, row: &TaskRow) -> Item {
        let size = match (row.value_size, &row.pickled, &row.value) {
            (Some(size), ..) => usize::try_from(size).unwrap_or(usize::MAX),
            (None, Some(pickled), _) => pickled.bytes.len(),
            (None, None, value) => value.as_ref().map_or(4, |value| value.get().len()),
        };
        let task = row.task;
        Item { first, last, task, size }
    }

    /// The form for an engine, which fetches the value from the controller.
    fn text(&self) -> String {
        match self.first == self.last && self.first == self.task {
            true => format!("\"{}\"", self.task),
            false => format!("[\"{}\",\"{}\"]", self.task, self.whose()),
        }
    }

    fn whose(&self) -> String {
        match self.first == self.last {
            true => self.first.to_string(),
            false => format!("{} to {}", self.first, self.last),
        }
    }
}

/// Values in input order.
#[derive(Debug, Default)]
pub(crate) struct Values(Vec<Item>);

impl Values {
    /// Adds a result; skips failed tasks.
    pub(crate) fn add(&mut self, row: TaskRow) {
        if !row.state.is_failed() {
            self.0.push(Item::new(row.task, row.task, &row));
        }
    }
}

pub(crate) enum Reduced {
    Value(Box<TaskRow>),
    Interrupted,
}

pub(crate) struct Reduction<'a> {
    pub context: &'a Context,
    pub client: &'a Client,
    pub function: Work,
    /// The map whose values are reduced, and its work.
    pub of: MapId,
    pub work: Work,
    /// That map's options.
    pub options: MapOptions,
}

impl Reduction<'_> {
    pub(crate) async fn run(self, values: Values, interrupts: &mut Interrupts) -> Result<Reduced, CommandError> {
        let values = values.0;
        if values.is_empty() {
            return Err(CommandError::failed(format!("map {} has no values to reduce", self.of)));
        }
        let name = format!("reduce of map {}", self.of);
        let definition = self.definition(name.clone());
        let engines = self.client.look(self.of).await?.engines.max(1) as usize;
        let largest = (values.len() / (8 * engines)).clamp(GROUP, LARGEST);
        let map = self.client.begin(definition).await?.map;
        let (sender, receiver) = std::sync::mpsc::channel::<String>();
        let (feeder, feeding) = (self.client.clone(), Feeding::default());
        let state = feeding.clone();
        let inputs = receiver.into_iter().map(|text| Ok(Bytes::from(text)));
        let feed = Feed {
            task: tokio::spawn(async move { feeder.feed(map, inputs, state).await }),
            feeding,
            is_stream: true,
        };
        let mut rounds = Rounds {
            largest,
            sender: Some(sender),
            expected: 0,
            groups: Vec::new(),
            values: Vec::new(),
            last: None,
            failed: None,
        };
        rounds.next(values);
        let mut progress = Progress::new(&name, self.context.terminal.stderr && !self.context.quiet);
        let job = Job {
            context: self.context,
            client: self.client.clone(),
            map,
            total: None,
            feed: Some(feed),
            detachable: false,
            outputs: LongOutputs::Left,
            values: false,
            inputs: false,
        };
        let (ended, _) = job
            .follow(interrupts, &mut progress, &mut |_, taken| {
                if let Taken::Rows(rows) = taken {
                    rows.into_iter().for_each(|row| rounds.take(row));
                }
                Ok(())
            })
            .await?;
        progress.clear();
        match (ended, rounds.failed, rounds.last) {
            (MapEnd::Complete, Some(error), _) => Err(CommandError::failed(format!("cannot reduce map {}: {error}", self.of))
                .hint(format!(
                    "its values remain available: pcluster results{} {}",
                    self.context.options(),
                    self.of
                ))
                .hint(format!("details: pcluster results{} {map} --failed", self.context.options()))),
            (MapEnd::Complete, None, Some(mut row)) => {
                fetch_value(self.client, &mut row).await?;
                Ok(Reduced::Value(Box::new(row)))
            }
            (MapEnd::Complete, None, None) => Err(CommandError::internal(format!(
                "the reduction of map {} ended without a value",
                self.of
            ))),
            (MapEnd::Detached | MapEnd::Cancelled, _, _) => {
                self.context.note(format!(
                    "the values of map {} remain available: pcluster results{} {0}",
                    self.of,
                    self.context.options()
                ));
                Ok(Reduced::Interrupted)
            }
        }
    }
}

impl Reduction<'_> {
    fn definition(&self, name: String) -> MapDefinition {
        MapDefinition {
            work: self.function.clone(),
            options: MapOptions {
                name: Some(name),
                after: None,
                targets: None,
                timeout_s: None,
                reduces: Some(Reduces {
                    map: self.of,
                    work: self.work.clone(),
                }),
                ..self.options.clone()
            },
        }
    }

    /// Checks on an engine, before the map runs, that the function loads and takes two values. None if interrupted.
    pub(crate) async fn check(&self, interrupts: &mut Interrupts) -> Result<Option<()>, CommandError> {
        let name = format!("check of the function that reduces map {}", self.of);
        let map = self.client.begin(self.definition(name.clone())).await?.map;
        self.client.feed(map, [Ok(Bytes::from_static(b"[]"))], Feeding::default()).await?;
        let mut progress = Progress::new(&name, false);
        let job = Job {
            context: self.context,
            client: self.client.clone(),
            map,
            total: Some(1),
            feed: None,
            detachable: false,
            outputs: LongOutputs::Left,
            values: false,
            inputs: false,
        };
        let mut failed = None;
        let (ended, _) = job
            .follow(interrupts, &mut progress, &mut |_, rows| {
                if let Taken::Rows(rows) = rows {
                    failed = rows.into_iter().find(|row| row.state.is_failed()).or(failed.take());
                }
                Ok(())
            })
            .await?;
        if ended != MapEnd::Complete {
            return Ok(None);
        }
        match failed {
            None => {
                // The check is complete; its map is removed.
                let _ = self.client.purge(vec![map]).await;
                Ok(Some(()))
            }
            Some(row) => {
                let error = row.error.as_ref().map_or_else(|| row.state.to_string(), error_text);
                Err(
                    CommandError::failed(format!("cannot use the function of --reduce, nothing was run: {error}")).hint(format!(
                        "details: pcluster results{} {}",
                        self.context.options(),
                        row.task
                    )),
                )
            }
        }
    }
}

/// The levels of the fold: groups sent, results received.
struct Rounds {
    largest: usize,
    /// Dropped after the last group.
    sender: Option<std::sync::mpsc::Sender<String>>,
    /// Results that this round is waiting for.
    expected: usize,
    /// For each task of the reduction: the tasks of the map that it folds.
    groups: Vec<(TaskId, TaskId)>,
    values: Vec<Item>,
    last: Option<TaskRow>,
    failed: Option<String>,
}

impl Rounds {
    fn next(&mut self, values: Vec<Item>) {
        let groups = groups(&values, self.largest, GROUP_BYTES);
        self.expected = groups.len();
        for group in groups {
            let (Some(first), Some(last)) = (group.first(), group.last()) else {
                continue;
            };
            self.groups.push((first.first, last.last));
            if let Some(sender) = &self.sender {
                let items: Vec<String> = group.iter().map(Item::text).collect();
                // The receiver lives as long as the map.
                let _ = sender.send(format!("{{\"values\":[{}]}}", items.join(",")));
            }
        }
        if self.expected == 1 {
            self.sender = None;
        }
    }

    /// One group's result, in order.
    fn take(&mut self, row: TaskRow) {
        let (first, last) = self.groups.get(row.task.index as usize).copied().unwrap_or((row.task, row.task));
        if row.state.is_failed() {
            let error = row.error.as_ref().map_or_else(|| row.state.to_string(), error_text);
            self.failed.get_or_insert(format!(
                "task {}, with the values of tasks {first} to {last}, failed: {error}",
                row.task
            ));
            self.sender = None;
            return;
        }
        self.expected = self.expected.saturating_sub(1);
        self.values.push(Item::new(first, last, &row));
        self.last = Some(row);
        if self.expected == 0 && self.values.len() > 1 && self.failed.is_none() {
            let values = std::mem::take(&mut self.values);
            self.next(values);
        }
    }
}

/// Groups consecutive values; at most half as many groups as values, so that the fold terminates.
fn groups(values: &[Item], largest: usize, bytes: usize) -> Vec<&[Item]> {
    let mut groups = Vec::new();
    let (mut start, mut size) = (0, 0_usize);
    for (i, value) in values.iter().enumerate() {
        let length = i - start;
        if length >= 2 && (length >= largest || size.saturating_add(value.size) > bytes) {
            groups.push(&values[start..i]);
            (start, size) = (i, 0);
        }
        size = size.saturating_add(value.size);
    }
    if start < values.len() {
        groups.push(&values[start..]);
    }
    groups
}

/// Adds the map's own files, which define the classes of the values, to the reducing function.
pub(crate) fn bring_code(mut function: Work, work: &Work) -> Work {
    if let (Some(own), Some(other)) = (function.bundle_mut(), work.bundle())
        && own.hash != other.hash
    {
        own.add(other);
    }
    function
}

/// `--with` applies to the reducing function as well, if it is in a file.
pub(crate) fn code_of(function: &str, code: &CodeArgs) -> CodeArgs {
    match function.contains(".py:") || function.contains('/') {
        true => code.clone(),
        false => CodeArgs::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::values::tests::{a_set, row};
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn item(index: u32, value: &str) -> Item {
        let task = TaskId::new(MapId(7), index);
        let row = TaskRow {
            task,
            ..row(index, Some(value))
        };
        Item::new(task, task, &row)
    }

    /// Folds by concatenation, as engines would.
    fn folded(count: usize, largest: usize) -> (String, usize) {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut rounds = Rounds {
            largest,
            sender: Some(sender),
            expected: 0,
            groups: Vec::new(),
            values: Vec::new(),
            last: None,
            failed: None,
        };
        let mut on_record: HashMap<String, String> = (0..count).map(|i| (format!("7.{i}"), format!("{i};"))).collect();
        rounds.next((0..count).map(|i| item(i as u32, "1")).collect());
        let mut tasks = 0;
        for input in receiver {
            let input: serde_json::Value = serde_json::from_str(&input).unwrap();
            let named = input["values"].as_array().unwrap().iter();
            let task = |value: &serde_json::Value| value.as_str().or(value[0].as_str()).unwrap().to_string();
            let values: Vec<String> = named.map(|value| on_record[&task(value)].clone()).collect();
            on_record.insert(format!("1.{tasks}"), values.concat());
            rounds.take(row(tasks as u32, Some("1")));
            tasks += 1;
        }
        (on_record[&rounds.last.unwrap().task.to_string()].clone(), tasks)
    }

    proptest! {
        #[test]
        fn values_are_reduced_in_order_to_one(count in 1usize..300, largest in 2usize..20) {
            let (text, tasks) = folded(count, largest);
            prop_assert_eq!(text, (0..count).map(|i| format!("{i};")).collect::<String>());
            prop_assert!(tasks <= 2 * count);
        }
        #[test]
        fn groups_contain_all_values_within_limits(lengths in proptest::collection::vec(0usize..50, 0..100), largest in 2usize..10, bytes in 0usize..200) {
            let values: Vec<Item> = lengths.iter().map(|n| item(0, &format!("{:?}", "x".repeat(*n)))).collect();
            let groups = groups(&values, largest, bytes);
            prop_assert_eq!(groups.concat(), values.clone());
            prop_assert!(groups.iter().all(|g| g.len() <= largest));
            prop_assert!(groups.len() <= values.len().div_ceil(2).max(1));
        }
    }

    #[test]
    fn few_values_form_one_task() {
        assert_eq!(folded(15, GROUP).1, 1);
        assert_eq!(folded(1, GROUP).1, 1);
    }

    #[test]
    fn a_failed_task_ends_the_reduction() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut rounds = Rounds {
            largest: 2,
            sender: Some(sender),
            expected: 0,
            groups: Vec::new(),
            values: Vec::new(),
            last: None,
            failed: None,
        };
        rounds.next((0..4).map(|i| item(i, "1")).collect());
        rounds.take(TaskRow {
            state: crate::model::task::TaskState::Error,
            ..row(0, None)
        });
        rounds.take(row(1, Some("7")));
        assert_eq!(receiver.into_iter().count(), 2, "no more groups, and the channel is closed");
        let expected = "task 1.0, with the values of tasks 7.0 to 7.1, failed: error";
        assert_eq!(rounds.failed.as_deref(), Some(expected));
    }

    #[test]
    fn inputs_refer_to_values_without_containing_them() {
        assert_eq!(item(3, "{\"a\":1}").text(), "\"7.3\"");
        let (first, last) = (TaskId::new(MapId(7), 0), TaskId::new(MapId(7), 4));
        let item = Item::new(first, last, &a_set(0));
        assert_eq!(item.text(), format!("[\"{}\",\"7.0 to 7.4\"]", a_set(0).task));
        assert_eq!(item.size, a_set(0).pickled.unwrap().bytes.len());
    }
}
