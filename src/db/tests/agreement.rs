//! Random changes, sensible ones and nonsense, in random batches, through restarts: the database agrees with a plain model.
use super::*;
use crate::model::change::{Attempt, Purge};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq)]
struct ModelTask {
    state: TaskState,
    run: u32,
    engine: Option<u32>,
    value: Option<u32>,
    /// Run numbers of the attempts that did not stand.
    kept: Vec<u32>,
}

#[derive(Default, Debug)]
struct Model {
    maps: BTreeMap<u32, BTreeMap<u32, ModelTask>>,
}

/// A change in small numbers: maps 1 to 3, indices to 5, runs to 4.
#[derive(Clone, Debug)]
enum Step {
    AddMap {
        map: u32,
    },
    AddTasks {
        map: u32,
        first: u32,
        tasks: u32,
        waiting: bool,
    },
    Release {
        map: u32,
    },
    Assign {
        map: u32,
        first: u32,
        tasks: u32,
        run: u32,
        engine: u32,
    },
    Begin {
        map: u32,
        index: u32,
        run: u32,
        engine: u32,
    },
    Finish {
        map: u32,
        index: u32,
        run: u32,
        engine: Option<u32>,
        status: TaskState,
        value: u32,
    },
    Return {
        map: u32,
        index: u32,
        run: u32,
        attempt: Option<u32>,
    },
    Resubmit {
        map: u32,
        index: u32,
        run: u32,
    },
    Purge {
        map: u32,
    },
}

fn steps() -> impl Strategy<Value = Step> {
    let (map, index, run, engine) = (1u32..4, 0u32..6, 1u32..5, 0u32..3);
    let one = (map.clone(), index.clone(), run.clone(), engine);
    let done = prop::sample::select(TaskState::ALL[4..].to_vec());
    prop_oneof![
        1 => map.clone().prop_map(|map| Step::AddMap { map }),
        2 => (map.clone(), index.clone(), 0u32..4, any::<bool>())
            .prop_map(|(map, first, tasks, waiting)| Step::AddTasks { map, first, tasks, waiting }),
        1 => map.clone().prop_map(|map| Step::Release { map }),
        4 => (one.clone(), 0u32..4).prop_map(|((map, first, run, engine), tasks)| Step::Assign { map, first, tasks, run, engine }),
        3 => one.clone().prop_map(|(map, index, run, engine)| Step::Begin { map, index, run, engine }),
        6 => (one.clone(), any::<bool>(), done, any::<u32>()).prop_map(|((map, index, run, engine), known, status, value)| {
            Step::Finish { map, index, run, engine: known.then_some(engine), status, value }
        }),
        2 => (one, any::<bool>())
            .prop_map(|((map, index, run, engine), begun)| Step::Return { map, index, run, attempt: begun.then_some(engine) }),
        2 => (map.clone(), index, run).prop_map(|(map, index, run)| Step::Resubmit { map, index, run }),
        1 => map.prop_map(|map| Step::Purge { map }),
    ]
}

impl Model {
    fn task(&mut self, map: u32, index: u32) -> Option<&mut ModelTask> {
        self.maps.get_mut(&map)?.get_mut(&index)
    }

    fn apply(&mut self, step: &Step) {
        use TaskState::*;
        match *step {
            Step::AddMap { map } => {
                self.maps.entry(map).or_default();
            }
            Step::AddTasks {
                map,
                first,
                tasks,
                waiting,
            } => {
                if let Some(rows) = self.maps.get_mut(&map) {
                    for index in first..first + tasks {
                        rows.entry(index).or_insert(ModelTask {
                            state: if waiting { Waiting } else { Ready },
                            run: 0,
                            engine: None,
                            value: None,
                            kept: vec![],
                        });
                    }
                }
            }
            Step::Release { map } => {
                for task in self
                    .maps
                    .get_mut(&map)
                    .into_iter()
                    .flat_map(|t| t.values_mut())
                    .filter(|t| t.state == Waiting)
                {
                    task.state = Ready;
                }
            }
            Step::Assign {
                map,
                first,
                tasks,
                run,
                engine,
            } => {
                for index in first..first + tasks {
                    if let Some(task) = self.task(map, index) {
                        let free = matches!(task.state, Ready | Waiting);
                        if free || (!task.state.is_done() && task.run < run) {
                            (task.state, task.run, task.engine) = (Assigned, run, Some(engine));
                        }
                    }
                }
            }
            Step::Begin { map, index, run, engine } => {
                if let Some(task) = self.task(map, index) {
                    let is_current = task.state == Running && task.run == run;
                    if !task.state.is_done() && run >= task.run && !is_current {
                        (task.state, task.run, task.engine) = (Running, run, Some(engine));
                    }
                }
            }
            Step::Finish {
                map,
                index,
                run,
                engine,
                status,
                value,
            } => {
                if let Some(task) = self.task(map, index) {
                    if task.state.is_done() {
                        if run <= task.run {
                            return;
                        }
                        task.reopen(run);
                    }
                    task.engine = engine.or(task.engine);
                    (task.state, task.run, task.value) = (status, task.run.max(run), Some(value));
                }
            }
            Step::Return { map, index, run, attempt } => {
                if let Some(task) = self.task(map, index) {
                    if task.state.is_done() {
                        if run <= task.run {
                            return;
                        }
                        let before = task.run;
                        task.reopen(run);
                        task.kept.extend(attempt.map(|_| before));
                        return;
                    }
                    if run < task.run || (run == task.run && task.state == Ready) {
                        return;
                    }
                    task.kept.extend(attempt.map(|_| task.run));
                    (task.state, task.run, task.engine) = (Ready, run, None);
                }
            }
            Step::Resubmit { map, index, run } => {
                if let Some(task) = self.task(map, index).filter(|task| task.state.is_done() && run > task.run) {
                    task.reopen(run);
                }
            }
            Step::Purge { map } => {
                if self
                    .maps
                    .get(&map)
                    .is_some_and(|tasks| tasks.values().all(|task| task.state.is_done()))
                {
                    self.maps.remove(&map);
                }
            }
        }
    }

    fn counts(&self, map: u32) -> Counts {
        let mut counts = Counts::default();
        for task in self.maps[&map].values() {
            counts.total += 1;
            match task.state {
                TaskState::Running => counts.running += 1,
                TaskState::Assigned => counts.assigned += 1,
                done => {
                    if let Some(counter) = counts.done_counter(done) {
                        *counter += 1;
                    }
                }
            }
        }
        counts
    }
}

impl ModelTask {
    fn reopen(&mut self, run: u32) {
        self.kept.push(self.run);
        (self.state, self.run, self.engine, self.value) = (TaskState::Ready, run, None, None);
    }
}

impl Step {
    fn change(&self) -> Change {
        let outcome = |status, value: u32| {
            let mut outcome = ok(&value.to_string());
            outcome.status = status;
            Box::new(outcome)
        };
        match *self {
            Step::AddMap { map } => map_added(map),
            Step::AddTasks {
                map,
                first,
                tasks,
                waiting,
            } => tasks_added(map, first, tasks, if waiting { TaskState::Waiting } else { TaskState::Ready }),
            Step::Release { map } => Change::MapReleased { map: MapId(map) },
            Step::Assign {
                map,
                first,
                tasks,
                run,
                engine,
            } => assigned(map, first, tasks, run, engine),
            Step::Begin { map, index, run, engine } => begun(map, index, run, engine),
            Step::Finish {
                map,
                index,
                run,
                engine,
                status,
                value,
            } => Change::TaskFinished {
                task: task(map, index),
                run,
                engine: engine.map(EngineId),
                outcome: outcome(status, value),
            },
            Step::Return { map, index, run, attempt } => Change::TaskReturned {
                task: task(map, index),
                run,
                attempt: attempt.map(|engine| Attempt {
                    engine: EngineId(engine),
                    outcome: outcome(TaskState::Error, 0),
                }),
            },
            Step::Resubmit { map, index, run } => Change::TaskResubmitted {
                task: task(map, index),
                run,
            },
            Step::Purge { map } => Change::Purged {
                what: Purge::Map(MapId(map)),
            },
        }
    }
}

fn check(writer: &Writer, model: &Model) -> Result<(), TestCaseError> {
    let reader = writer.reader().unwrap();
    let maps = reader.maps(&MapQuery::default()).unwrap();
    prop_assert_eq!(
        maps.iter().map(|map| map.map.0).collect::<Vec<_>>(),
        model.maps.keys().copied().collect::<Vec<_>>()
    );
    for map in &maps {
        prop_assert_eq!(map.counts, model.counts(map.map.0), "map {}", map.map);
    }
    let (rows, _) = reader.tasks(&TaskQuery::default()).unwrap();
    let expected = model
        .maps
        .iter()
        .flat_map(|(map, tasks)| tasks.iter().map(|(index, found)| (task(*map, *index), found)));
    let expected: Vec<_> = expected.collect();
    prop_assert_eq!(rows.len(), expected.len());
    for (row, (id, task)) in rows.iter().zip(&expected) {
        prop_assert_eq!(row.task, *id);
        prop_assert_eq!((row.state, row.engine.map(|e| e.0)), (task.state, task.engine), "{}", id);
        prop_assert_eq!(row.value.as_ref().map(|v| v.get().to_string()), task.value.map(|v| v.to_string()));
        prop_assert_eq!(row.completed.is_some(), task.state.is_done());
        let kept: Vec<u32> = reader.attempts(*id).unwrap().iter().map(|attempt| attempt.run).collect();
        prop_assert_eq!(&kept, &task.kept, "{}", id);
    }
    for map in model.maps.keys() {
        let mut unfinished = Vec::new();
        reader
            .unfinished_tasks(MapId(*map), &mut |task| unfinished.push((task.index, task.run)))
            .unwrap();
        let open = model.maps[map].iter().filter(|(_, task)| !task.state.is_done());
        prop_assert_eq!(unfinished, open.map(|(index, task)| (*index, task.run)).collect::<Vec<_>>());
        let finished = reader.finished_from(MapId(*map), 0, 100, true).unwrap().1.len();
        let run = (0..).take_while(|index| model.maps[map].get(index).is_some_and(|task| task.state.is_done()));
        prop_assert_eq!(finished, run.count());
    }
    // The same by state, which uses other indexes.
    for states in [
        &TaskState::ALL[..4],
        &TaskState::ALL[5..],
        &TaskState::ALL[4..5],
        &TaskState::ALL[3..4],
    ] {
        let query = TaskQuery {
            states: states.to_vec(),
            ..TaskQuery::default()
        };
        let found: Vec<_> = reader.tasks(&query).unwrap().0.iter().map(|row| row.task).collect();
        let wanted: Vec<_> = expected
            .iter()
            .filter(|(_, task)| states.contains(&task.state))
            .map(|(id, _)| *id)
            .collect();
        prop_assert_eq!(found, wanted, "{:?}", states);
    }
    prop_assert!(reader.check().unwrap().is_empty());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn states_counters_and_attempts_agree(batches in proptest::collection::vec(proptest::collection::vec(steps(), 1..12), 1..10)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.db");
        let mut model = Model::default();
        let mut writer = Writer::open(&path, Durability::Normal).unwrap();
        // Most steps are about tasks that are there.
        let start = [Step::AddMap { map: 1 }, Step::AddTasks { map: 1, first: 0, tasks: 6, waiting: false }];
        for batch in std::iter::once(&start[..]).chain(batches.iter().map(Vec::as_slice)) {
            let changes: Vec<Change> = batch.iter().map(Step::change).collect();
            writer.apply(&changes).unwrap();
            batch.iter().for_each(|step| model.apply(step));
            check(&writer, &model)?;
        }
        drop(writer);
        check(&Writer::open(&path, Durability::Normal).unwrap(), &model)?;
    }
}
