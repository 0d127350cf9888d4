//! Queries: maps, tasks by every filter, finished tasks in order.
use super::*;
use crate::model::query::{Column, Comparison, Condition, ConditionValue, parse_conditions};
use proptest::prelude::*;

/// Two maps on two engines. 1 (label a): 0 ok 1, 1 error, 2 running, 3 ready; 2: 0 ok "abc", 1 timeout.
fn sample() -> Db {
    let mut db = Db::new();
    let mut labelled = definition();
    labelled.options.label = Some("a".into());
    labelled.options.name = Some("first".into());
    db.apply(&[
        engine(0),
        engine(1),
        Change::MapAdded {
            map: MapId(1),
            definition: Box::new(labelled),
            client: "client".into(),
            submitted: UnixTime(1001.0),
        },
        tasks_added(1, 0, 4, TaskState::Ready),
    ]);
    db.add_map(2, 2);
    let mut slow = ok("\"abc\"");
    slow.ended = UnixTime(2900.0);
    slow.stderr = "100% _done_".into();
    slow.exit_code = Some(0);
    let mut late = failed(TaskState::Timeout, "TaskTimeout", "after 10 s");
    late.exit_code = Some(-9);
    db.apply(&[
        assigned(1, 0, 3, 1, 0),
        finished(1, 0, 1, 0, ok("1")),
        finished(1, 1, 1, 0, failed(TaskState::Error, "ValueError", "it's bad")),
        begun(1, 2, 1, 0),
        assigned(2, 0, 2, 1, 1),
        finished(2, 0, 1, 1, slow),
        finished(2, 1, 1, 1, late),
        Change::MapCompleted {
            map: MapId(2),
            at: Some(UnixTime(3000.0)),
        },
    ]);
    db
}

fn ids(reader: &Reader, query: &TaskQuery) -> String {
    let (rows, matching) = reader.tasks(query).unwrap();
    if query.limit.is_none() && query.offset == 0 {
        assert_eq!(matching, rows.len() as u64);
    }
    rows.iter().map(|row| row.task.to_string()).collect::<Vec<_>>().join(" ")
}

#[test]
fn every_filter() {
    use TaskState::*;
    let db = sample();
    let reader = db.reader();
    let all = TaskQuery::default;
    let is = |query: TaskQuery, expected: &str| assert_eq!(ids(&reader, &query), expected, "{query:?}");
    let states = |states: &[TaskState]| TaskQuery {
        states: states.to_vec(),
        ..all()
    };
    is(all(), "1.0 1.1 1.2 1.3 2.0 2.1");
    is(
        TaskQuery {
            maps: vec![MapId(2)],
            ..all()
        },
        "2.0 2.1",
    );
    is(
        TaskQuery {
            maps: vec![MapId(2), MapId(1), MapId(7)],
            states: vec![Ok],
            ..all()
        },
        "1.0 2.0",
    );
    is(
        TaskQuery {
            tasks: vec![task(2, 1), task(1, 0), task(1, 0), task(5, 5)],
            ..all()
        },
        "1.0 2.1",
    );
    is(
        TaskQuery {
            tasks: vec![task(2, 1), task(1, 0)],
            maps: vec![MapId(2)],
            ..all()
        },
        "2.1",
    );
    is(
        TaskQuery {
            tasks: vec![task(2, 1), task(1, 0)],
            states: vec![Timeout],
            ..all()
        },
        "2.1",
    );
    is(
        TaskQuery {
            tasks: vec![task(1, 2), task(1, 0)],
            states: vec![Running],
            ..all()
        },
        "1.2",
    );
    is(states(&[Waiting, Ready, Assigned, Running]), "1.2 1.3");
    is(states(&[Ready]), "1.3");
    is(states(&[Running]), "1.2");
    is(states(&[Error, Aborted, Timeout, Lost]), "1.1 2.1");
    is(states(&[Timeout]), "2.1");
    is(states(&[Ok, Error, Running]), "1.0 1.1 1.2 2.0");
    is(
        TaskQuery {
            engines: vec![EngineId(1), EngineId(4)],
            ..all()
        },
        "2.0 2.1",
    );
    is(
        TaskQuery {
            label: Some("a".into()),
            ..all()
        },
        "1.0 1.1 1.2 1.3",
    );
    is(
        TaskQuery {
            since: Some(UnixTime(1000.6)),
            ..all()
        },
        "",
    );
    is(
        TaskQuery {
            limit: Some(2),
            offset: 3,
            ..all()
        },
        "1.3 2.0",
    );
    is(TaskQuery { offset: 5, ..all() }, "2.1");
    is(
        TaskQuery {
            sort: Some((Column::Duration, true)),
            ..all()
        },
        "2.0 1.1 2.1 1.0 1.2 1.3",
    );
    is(
        TaskQuery {
            sort: Some((Column::Duration, false)),
            limit: Some(1),
            ..all()
        },
        "1.0",
    );
    is(
        TaskQuery {
            sort: Some((Column::State, false)),
            limit: Some(2),
            ..all()
        },
        "1.1 1.0",
    );
}

#[test]
fn conditions() {
    let db = sample();
    let reader = db.reader();
    for (text, expected) in [
        ("duration>=600", "2.0"),
        ("duration<3", "1.0"),
        ("state=error", "1.1"),
        ("state!=ok", "1.1 1.2 1.3 2.1"),
        ("error=ValueError", "1.1"),
        ("error!=ValueError", "2.1"),
        ("error='ValueError: it's bad'", "1.1"),
        ("error~bad", "1.1"),
        ("exit_code!=0", "2.1"),
        ("exit_code<0 and state=timeout", "2.1"),
        ("host=node1", "2.0 2.1"),
        ("engine=0, index>=1", "1.1 1.2"),
        ("map=2", "2.0 2.1"),
        ("value=1", "1.0"),
        ("value>0.5", "1.0"),
        ("value=1.0", "1.0"),
        ("value!=1.0", "2.0"),
        ("value<0.5", ""),
        ("value=abc", "2.0"),
        ("value!=abc", "1.0"),
        ("input=[3]", "1.3"),
        ("input~3", "1.3"),
        ("index~3", "1.3"),
        ("stderr~%", "2.0"),
        ("stderr~_done_", "2.0"),
        ("stdout~x", ""),
        ("label=a and attempts>0", "1.0 1.1 1.2"),
        ("started>=1970-01-01T00:00:01", "1.0 1.1 1.2 2.0 2.1"),
    ] {
        let query = TaskQuery {
            conditions: parse_conditions(text).unwrap(),
            ..TaskQuery::default()
        };
        assert_eq!(ids(&reader, &query), expected, "{text}");
    }
}

#[test]
fn numbers_are_not_compared_with_text() {
    let db = sample();
    let query = TaskQuery {
        conditions: vec![Condition {
            column: Column::Duration,
            comparison: Comparison::Less,
            value: ConditionValue::Text("long".into()),
        }],
        ..TaskQuery::default()
    };
    let error = db.reader().tasks(&query).unwrap_err();
    assert_eq!(error.kind, super::super::DbErrorKind::Query);
    assert!(error.to_string().contains("duration is a number, \"long\" is none"), "{error}");
}

#[test]
fn matching_tasks_are_counted_beyond_the_limit() {
    let db = sample();
    let reader = db.reader();
    let states = [
        vec![],
        vec![TaskState::Ok],
        vec![TaskState::Ready],
        vec![TaskState::Ready, TaskState::Waiting],
    ];
    let conditions = ["index>=0", "index>=1"].map(|text| parse_conditions(text).unwrap());
    for states in states {
        for maps in [vec![], vec![MapId(1)]] {
            for conditions in [vec![], conditions[0].clone(), conditions[1].clone()] {
                let (states, maps) = (states.clone(), maps.clone());
                let mut query = TaskQuery {
                    states,
                    maps,
                    conditions,
                    ..TaskQuery::default()
                };
                let (all, matching) = reader.tasks(&query).unwrap();
                assert_eq!(all.len() as u64, matching);
                query.limit = Some(1);
                let (some, counted) = reader.tasks(&query).unwrap();
                assert_eq!((some.len(), counted), (all.len().min(1), matching), "{query:?}");
            }
        }
    }
}

#[test]
fn listings_omit_long_texts() {
    let db = sample();
    let query = TaskQuery {
        brief: true,
        ..TaskQuery::default()
    };
    let (rows, _) = db.reader().tasks(&query).unwrap();
    assert!(
        rows.iter()
            .all(|row| row.value.is_none() && row.stderr.is_empty() && row.input.is_some())
    );
    assert_eq!(rows[1].error.as_ref().unwrap().ename, "ValueError");
    assert_eq!(rows[0].label.as_deref(), Some("a"));
}

#[test]
fn maps_are_ordered_oldest_first() {
    let db = sample();
    let reader = db.reader();
    let ids = |query: MapQuery| reader.maps(&query).unwrap().iter().map(|map| map.map.0).collect::<Vec<_>>();
    let all = MapQuery::default;
    assert_eq!(ids(all()), [1, 2]);
    assert_eq!(ids(MapQuery { limit: Some(1), ..all() }), [2]);
    assert_eq!(
        ids(MapQuery {
            maps: vec![MapId(1)],
            ..all()
        }),
        [1]
    );
    assert_eq!(
        ids(MapQuery {
            label: Some("a".into()),
            ..all()
        }),
        [1]
    );
    assert_eq!(
        ids(MapQuery {
            since: Some(UnixTime(1001.5)),
            ..all()
        }),
        [2]
    );
    let first = &reader.maps(&all()).unwrap()[0];
    assert_eq!(
        (first.name.as_str(), first.kind.as_str(), first.closed, first.completed),
        ("first", "call", false, None)
    );
    let second = &reader.maps(&all()).unwrap()[1];
    assert_eq!(
        (second.name.as_str(), second.closed, second.completed),
        ("pi.py:f", true, Some(UnixTime(3000.0)))
    );
    assert_eq!(reader.map_definition(MapId(2)).unwrap(), Some(definition().with_bundle()));
    assert_eq!(reader.map_definition(MapId(3)).unwrap(), None);
    assert_eq!(reader.map_of_client("client").unwrap(), Some(MapId(2)));
    assert_eq!(reader.map_of_client("unknown").unwrap(), None);
}

#[test]
fn finished_tasks_in_order_up_to_a_gap() {
    let mut db = Db::new();
    db.add_map(1, 6);
    let count = |db: &Db, from, limit| db.reader().finished_from(MapId(1), from, limit, true).unwrap().1.len();
    assert_eq!(count(&db, 0, 10), 0);
    db.apply(&[
        finished(1, 1, 1, 0, ok("1")),
        finished(1, 3, 1, 0, failed(TaskState::Error, "E", "")),
    ]);
    assert_eq!(count(&db, 0, 10), 0);
    db.apply(&[finished(1, 0, 1, 0, ok("1"))]);
    assert_eq!(
        (count(&db, 0, 10), count(&db, 1, 10), count(&db, 2, 10), count(&db, 0, 1)),
        (2, 1, 0, 1)
    );
    db.apply(&[finished(1, 2, 1, 0, ok("1"))]);
    let rows = db.reader().finished_from(MapId(1), 0, 10, true).unwrap().1;
    assert_eq!(rows.iter().map(|row| row.task.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!((rows[3].state, rows[0].value.as_ref().unwrap().get()), (TaskState::Error, "1"));
    assert_eq!((count(&db, 6, 10), count(&db, u32::MAX, 10)), (0, 0));
    assert!(db.reader().finished_from(MapId(2), 0, 10, true).unwrap().1.is_empty());
}

#[test]
fn one_reply_holds_about_16_mib() {
    let mut db = Db::new();
    db.add_map(1, 5);
    for index in 0..5 {
        let mut outcome = ok("1");
        outcome.value = Some(RawValue::from_string(format!("\"{}\"", "x".repeat(6 << 20))).unwrap());
        db.apply(&[finished(1, index, 1, 0, outcome)]);
    }
    let reader = db.reader();
    assert_eq!(reader.finished_from(MapId(1), 0, 10, true).unwrap().1.len(), 2);
    assert_eq!(reader.finished_from(MapId(1), 4, 10, true).unwrap().1.len(), 1);
}

#[test]
fn a_reader_sees_each_commit_while_the_writer_works() {
    let mut db = Db::new();
    let reader = db.reader();
    db.add_map(1, 3);
    assert_eq!(reader.tasks(&TaskQuery::default()).unwrap().1, 3);
    db.apply(&[finished(1, 0, 1, 0, ok("1"))]);
    assert_eq!(reader.finished_from(MapId(1), 0, 9, true).unwrap().1.len(), 1);
}

/// Listings of a map must not sort or scan what they can find in order.
#[test]
fn plans_are_ranges_of_rows() {
    let db = sample();
    let connection = rusqlite::Connection::open(db.path()).unwrap();
    let plan = |query: &TaskQuery| {
        let sql = super::super::tasks::rows(query, crate::db::schema::VERSION).unwrap();
        let mut explain = connection.prepare(&format!("EXPLAIN QUERY PLAN {}", sql.text)).unwrap();
        let rows = explain
            .query_map(rusqlite::params_from_iter(sql.values), |row| row.get::<_, String>(3))
            .unwrap();
        rows.map(Result::unwrap).collect::<Vec<_>>().join("\n")
    };
    let mut query = TaskQuery {
        maps: vec![MapId(1)],
        brief: true,
        ..TaskQuery::default()
    };
    let whole = plan(&query);
    assert!(
        whole.contains("SEARCH t USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        "{whole}"
    );
    assert!(!whole.contains("TEMP B-TREE FOR ORDER"), "{whole}");
    for (states, index) in [
        (vec![TaskState::Running, TaskState::Ready], "task_unfinished"),
        (vec![TaskState::Error], "task_failed"),
    ] {
        query.states = states;
        let plan = plan(&query);
        assert!(plan.contains(&format!("SEARCH t USING INDEX {index} (id>? AND id<?)")), "{plan}");
        assert!(!plan.contains("TEMP B-TREE FOR ORDER"), "{plan}");
    }
}

fn any_condition() -> impl Strategy<Value = Condition> {
    let value = prop_oneof![
        any::<f64>().prop_map(ConditionValue::Number),
        "[-0-9.]{1,6}".prop_map(ConditionValue::Text),
        ".*".prop_map(ConditionValue::Text),
        Just(ConditionValue::Text("' OR 1=1; DROP TABLE task; --".into())),
    ];
    let terms = (prop::sample::select(Column::ALL), prop::sample::select(COMPARISONS.as_slice()));
    (terms, value).prop_map(|((column, comparison), value)| Condition { column, comparison, value })
}
const COMPARISONS: [Comparison; 7] = [
    Comparison::Less,
    Comparison::LessEqual,
    Comparison::Equal,
    Comparison::NotEqual,
    Comparison::GreaterEqual,
    Comparison::Greater,
    Comparison::Contains,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Any query is answered or refused as a question; none is an SQL error, none reaches the tables.
    #[test]
    fn no_query_breaks_the_sql(queries in proptest::collection::vec((
        proptest::collection::vec(any_condition(), 0..4),
        proptest::option::of((prop::sample::select(Column::ALL), any::<bool>())),
        proptest::collection::vec(prop::sample::select(TaskState::ALL.as_slice()), 0..4),
        proptest::option::of(".*"),
        (proptest::option::of(any::<u64>()), any::<u64>(), any::<bool>(), any::<bool>()),
    ), 20)) {
        let db = sample();
        let reader = db.reader();
        for (conditions, sort, states, label, (limit, offset, brief, by_task)) in queries {
            let tasks = if by_task { vec![task(1, 0), task(2, 1)] } else { vec![] };
            let query = TaskQuery { conditions, sort, states, label, limit, offset, brief, tasks, ..TaskQuery::default() };
            if let Err(error) = reader.tasks(&query) {
                prop_assert_eq!(error.kind, super::super::DbErrorKind::Query, "{} for {:?}", error, query);
            }
        }
        prop_assert_eq!(reader.tasks(&TaskQuery::default()).unwrap().1, 6);
    }

    /// A condition by SQL holds exactly where it holds by hand.
    #[test]
    fn numbers_compare_as_numbers(comparison in prop::sample::select(COMPARISONS[..6].to_vec()), number in -2i32..6) {
        let db = sample();
        let condition = Condition { column: Column::Index, comparison, value: ConditionValue::Number(number.into()) };
        let query = TaskQuery { conditions: vec![condition], maps: vec![MapId(1)], ..TaskQuery::default() };
        let holds = |index: i32| match comparison {
            Comparison::Less => index < number,
            Comparison::LessEqual => index <= number,
            Comparison::Equal => index == number,
            Comparison::NotEqual => index != number,
            Comparison::GreaterEqual => index >= number,
            _ => index > number,
        };
        let expected: Vec<_> = (0..4).filter(|index| holds(*index)).map(|index| format!("1.{index}")).collect();
        prop_assert_eq!(ids(&db.reader(), &query), expected.join(" "));
    }
}
