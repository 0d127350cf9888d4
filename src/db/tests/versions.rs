//! Files of older versions stay readable: `tests/fixtures/db/` has some of them.
use super::*;
use crate::db::schema;
use rusqlite::Connection;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A copy of the fixture, because reading a file creates others beside it.
fn kept(name: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::copy(root().join("tests/fixtures/db").join(name), &path).unwrap();
    (directory, path)
}

#[test]
fn version_1_is_readable_and_upgraded() {
    let (_directory, path) = kept("v1.db");
    let reader = Reader::open(&path).unwrap();
    let maps = reader.maps(&MapQuery::default()).unwrap();
    let seen: Vec<_> = maps
        .iter()
        .map(|map| (map.map.0, map.kind.as_str(), map.name.as_str(), map.counts.ok, map.counts.total))
        .collect();
    assert_eq!(
        seen,
        [
            (1, "call", "pi.py:f", 3, 5),
            (2, "command", "echo {}", 1, 1),
            (3, "client", "client", 1, 2)
        ]
    );
    let (rows, _) = reader.tasks(&TaskQuery::default()).unwrap();
    let brief: Vec<_> = rows.iter().map(|row| format!("{} {}", row.task, row.state)).collect();
    assert_eq!(
        brief,
        [
            "1.0 ok",
            "1.1 ok",
            "1.2 ok",
            "1.3 error",
            "1.4 running",
            "2.0 ok",
            "3.0 ok",
            "3.1 ready"
        ]
    );
    let error = rows[3].error.as_ref().unwrap();
    assert_eq!(
        (error.ename.as_str(), error.evalue.as_str(), rows[3].attempts),
        ("ValueError", "not 3", 2)
    );
    // In version 1, pickles were base64, with only their `repr`.
    let pickled = rows[2].pickled.as_ref().unwrap();
    assert_eq!(
        (pickled.python_type.as_str(), &pickled.bytes[..]),
        ("object", &[0x80, 4, 0x95, 0, 0][..])
    );
    assert_eq!(rows[2].value.as_ref().unwrap().get(), "\"<object>\"");
    assert_eq!(
        (rows[4].stdout.as_str(), rows[5].stdout.as_str(), rows[5].exit_code),
        ("so far", "hello\n", Some(0))
    );
    assert_eq!(
        reader.attempts(task(1, 3)).unwrap()[0].outcome.error.as_ref().unwrap().ename,
        "WorkerDied"
    );
    assert_eq!(reader.requests(&["a".into()]).unwrap()[0].result_buffers.len(), 2);
    let state = reader.restart_state().unwrap();
    assert_eq!(
        (state.next_map, state.next_engine, state.maps.len(), state.engines.len()),
        (MapId(4), EngineId(2), 2, 1)
    );
    drop(reader);

    // A controller continues with the file.
    let mut writer = Writer::open(&path, Durability::Normal).unwrap();
    writer.apply(&[finished(1, 4, 1, 0, ok("4"))]).unwrap();
    let row = writer.reader().unwrap().finished_from(MapId(1), 4, 1, true).unwrap().1.remove(0);
    assert_eq!((row.state, row.stdout.as_str()), (TaskState::Ok, "so far"));
}

/// Version 2 added attempts that were cancelled while an engine had them.
#[test]
fn version_2_keeps_cancelled_attempts() {
    let (_directory, path) = kept("v2.db");
    Writer::open(&path, Durability::Normal).unwrap().close().unwrap();
    let mut cancelled = Vec::new();
    let reader = Reader::open(&path).unwrap();
    reader
        .unfinished_tasks(MapId(1), &mut |task| cancelled.push((task.index, task.cancelled)))
        .unwrap();
    assert_eq!(cancelled, [(4, true)]);
}

/// Version 3 added maps that are being purged.
#[test]
fn version_3_keeps_maps_being_purged() {
    let (_directory, path) = kept("v3.db");
    let tasks = |reader: Reader| reader.tasks(&TaskQuery::default()).unwrap().1;
    assert_eq!(tasks(Reader::open(&path).unwrap()), 7);
    let mut writer = Writer::open(&path, Durability::Normal).unwrap();
    assert!(writer.is_untidy());
    writer.compact().unwrap();
    assert_eq!(tasks(writer.reader().unwrap()), 7);
    let rows = Connection::open(&path).unwrap();
    let left: i64 = rows.query_row("SELECT count(*) FROM task", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 7);
}

/// The version before 11: outputs that are not text, code that maps run, code that one had before, an exact value, and a task that ran at the end. The
/// file is of a cluster that was killed.
#[test]
fn version_10_is_readable_and_upgraded() {
    let (_directory, path) = kept("v10.db");
    let before = Reader::open(&path).unwrap();
    let read = |reader: &Reader| {
        let (rows, matching) = reader.tasks(&TaskQuery::default()).unwrap();
        let state = reader.restart_state().unwrap();
        let rows = serde_json::to_string_pretty(&rows).unwrap();
        (
            rows,
            matching,
            state.next_map,
            state.next_engine,
            state.maps.len(),
            state.engines.len(),
        )
    };
    let as_it_was = read(&before);
    drop(before);
    let mut writer = Writer::open(&path, Durability::Normal).unwrap();
    assert_eq!(read(&writer.reader().unwrap()), as_it_was, "the migration changes no row");
    assert_eq!(
        (as_it_was.1, as_it_was.2, as_it_was.3, as_it_was.4, as_it_was.5),
        (7, MapId(4), EngineId(1), 1, 1)
    );

    let reader = writer.reader().unwrap();
    let (rows, _) = reader.tasks(&TaskQuery::default()).unwrap();
    let brief: Vec<_> = rows
        .iter()
        .map(|row| format!("{} {} {:?}", row.task, row.state, row.stdout.bytes))
        .collect();
    assert_eq!(
        brief,
        [
            "1.0 ok b\"input 0\\n\"",
            "1.1 ok b\"input 1\\n\"",
            "1.2 error b\"input 2\\n\"",
            "1.3 ok b\"input 3\\n\"",
            "2.0 ok b\"out a\\n\"",
            "2.1 error b\"out b\\xff\\0\\n\"",
            "3.0 running b\"so far\\n\"",
        ]
    );
    let exact = rows[3].pickled.as_ref().unwrap();
    assert_eq!(
        (exact.python_type.as_str(), exact.bytes.first(), exact.bytes.len()),
        ("tuple", Some(&0x80), 18)
    );
    assert_eq!(rows[3].value.as_ref().unwrap().get(), "[3,6]");
    assert_eq!(
        (rows[5].stderr.as_str(), rows[5].exit_code, rows[2].attempts),
        ("err\n", Some(1), 2)
    );
    assert_eq!(
        reader.attempts(task(1, 2)).unwrap()[0].outcome.error.as_ref().unwrap().evalue,
        "not 2"
    );
    let rows = Connection::open(&path).unwrap();
    let code: Vec<(String, i64)> = {
        let sql = "SELECT bundle, 1 FROM map WHERE bundle IS NOT NULL UNION ALL SELECT bundle, 0 FROM earlier_code";
        let mut select = rows.prepare(sql).unwrap();
        let found = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        found.map(Result::unwrap).collect()
    };
    assert_eq!(code.len(), 2);
    for (hash, is_newest) in code {
        let sql = "SELECT content FROM bundle WHERE hash = ?1";
        let content: Vec<u8> = rows.query_row(sql, [&hash], |row| row.get(0)).unwrap();
        let text = String::from_utf8_lossy(&content).into_owned();
        let body = if is_newest == 1 { "return n + n" } else { "return 2 * n" };
        assert!(text.contains("from helper import double") && text.contains(body), "{text}");
    }

    // A controller continues with the file.
    let mut outcome = ok("1");
    outcome.stdout = crate::model::output::Output::rest(7, &b"\xff\0"[..]);
    writer.apply(&[finished(3, 0, 1, 0, outcome)]).unwrap();
    let row = writer.reader().unwrap().finished_from(MapId(3), 0, 1, true).unwrap().1.remove(0);
    assert_eq!((row.state, &row.stdout.bytes[..]), (TaskState::Ok, &b"so far\n\xff\0"[..]));
}

/// The shape of a file: every column of every table and view.
fn shape(connection: &Connection) -> BTreeSet<(String, String)> {
    let sql = "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c \
               WHERE m.type IN ('table', 'view') AND m.name NOT LIKE 'sqlite%'";
    let mut select = connection.prepare(sql).unwrap();
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn a_migrated_file_has_the_current_schema() {
    for file in ["v1.db", "v2.db", "v3.db", "v10.db"] {
        let (_directory, path) = kept(file);
        Writer::open(&path, Durability::Normal).unwrap().close().unwrap();
        let (old, new) = (Connection::open(&path).unwrap(), Db::new());
        assert_eq!(shape(&old), shape(&Connection::open(new.path()).unwrap()), "{file}");
        assert_eq!(schema::version(&old).unwrap(), schema::VERSION);
        let views = |file: &Connection| -> Vec<String> {
            let mut select = file
                .prepare("SELECT sql FROM sqlite_master WHERE type = 'view' ORDER BY name")
                .unwrap();
            let rows = select.query_map([], |row| row.get(0)).unwrap();
            rows.map(Result::unwrap).collect()
        };
        assert_eq!(views(&old), views(&Connection::open(new.path()).unwrap()), "{file}");
        assert_eq!(views(&old).len(), 2);
    }
}

#[test]
fn every_column_is_documented_under_its_table() {
    let text = fs::read_to_string(root().join("docs/reference/database.md")).unwrap();
    let db = Db::new();
    let version = format!("the version of the tables, now {}", schema::VERSION);
    assert!(text.contains(&version), "docs/reference/database.md lacks: {version}");
    for (table, column) in shape(&Connection::open(db.path()).unwrap()) {
        let heading = format!("### `{table}`\n");
        let section = text.split_once(&heading).unwrap_or_else(|| panic!("no section on {table}")).1;
        let section = section.split("\n##").next().unwrap();
        let rows: String = section
            .lines()
            .filter(|line| line.starts_with('|'))
            .filter_map(|line| line.split('|').nth(1))
            .collect();
        assert!(
            rows.contains(&format!("`{column}`")),
            "docs/reference/database.md does not mention {table}.{column}"
        );
    }
}

/// The indented SQL of docs/reference/database.md runs, on the kept file.
#[test]
fn the_examples_run() {
    let text = fs::read_to_string(root().join("docs/reference/database.md")).unwrap();
    let examples: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("    SELECT")).collect();
    assert!(examples.len() >= 7);
    let (_directory, path) = kept("v1.db");
    let connection = Connection::open(path).unwrap();
    for example in examples {
        let sql = format!("SELECT{example}");
        let mut select = connection.prepare(&sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        let mut rows = select.query([]).unwrap();
        let some = rows.next().unwrap().is_some();
        assert!(some || sql.contains("'now'") || sql.contains("map = 2"), "{sql} finds nothing");
    }
}

/// The views are for people: dates to be read, the error in one column, the output of a running task.
#[test]
fn views_are_formatted_for_people() {
    let (_directory, path) = kept("v1.db");
    let connection = Connection::open(path).unwrap();
    let line = |sql: &str| -> String {
        let mut select = connection.prepare(sql).unwrap();
        let columns = select.column_count();
        let row = select.query_row([], |row| {
            let text = |column| Ok(row.get_ref(column)?.as_str_or_null()?.unwrap_or("NULL").to_string());
            (0..columns).map(text).collect::<rusqlite::Result<Vec<_>>>()
        });
        row.unwrap().join(" | ")
    };
    let columns = "task, state, host, CAST(duration AS TEXT), submitted, completed, value, error, stdout, label, msg_id";
    let of = |task: &str| line(&format!("SELECT {columns} FROM tasks WHERE task = '{task}'"));
    assert_eq!(
        of("1.3"),
        "1.3 | error | node0 | 3.0 | 1970-01-01 00:16:40.500 | 1970-01-01 00:33:23.000 | NULL | ValueError: not 3 | NULL | NULL | NULL"
    );
    assert_eq!(
        of("1.4"),
        "1.4 | running | node0 | NULL | 1970-01-01 00:16:40.500 | NULL | NULL | NULL | so far | NULL | NULL"
    );
    assert_eq!(
        of("3.0"),
        "3.0 | ok | node0 | 1.5 | 1970-01-01 00:16:41.000 | 1970-01-01 00:33:21.500 | NULL | NULL | NULL | mine | a"
    );
    let counts = "CAST(total AS TEXT), CAST(ok AS TEXT), CAST(failed AS TEXT), CAST(running AS TEXT), CAST(pending AS TEXT)";
    let map = |map: u32| line(&format!("SELECT name, {counts}, completed FROM maps WHERE map = {map}"));
    assert_eq!(map(1), "pi.py:f | 5 | 3 | 1 | 1 | 1 | NULL");
    assert_eq!(map(2), "echo {} | 1 | 1 | 0 | 0 | 0 | 1970-01-01 00:50:00.000");
}
