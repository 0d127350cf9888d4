-- Version 1. Kept to what SQLite could do in 2013 (3.8: partial indexes), so that the sqlite3 of an old cluster reads
-- the file: no STRICT, no generated columns. docs/reference/database.md explains every column.
-- In `task`, small columns that are read often come first, so that long texts stay on overflow pages that are rarely read.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE map (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused, even after a purge
    kind       TEXT NOT NULL,
    name       TEXT NOT NULL,
    label      TEXT,
    client     TEXT NOT NULL,
    submitted  REAL NOT NULL,
    closed     INTEGER NOT NULL DEFAULT 0,
    completed  REAL,
    total      INTEGER NOT NULL DEFAULT 0,
    ok         INTEGER NOT NULL DEFAULT 0,
    error      INTEGER NOT NULL DEFAULT 0,
    aborted    INTEGER NOT NULL DEFAULT 0,
    timeout    INTEGER NOT NULL DEFAULT 0,
    lost       INTEGER NOT NULL DEFAULT 0,
    assigned   INTEGER NOT NULL DEFAULT 0,
    running    INTEGER NOT NULL DEFAULT 0,
    definition TEXT NOT NULL
);
CREATE INDEX map_open ON map (id) WHERE completed IS NULL;

CREATE TABLE task (
    id        INTEGER PRIMARY KEY,  -- map << 32 | place in the map's inputs
    state     TEXT NOT NULL,
    run       INTEGER NOT NULL DEFAULT 0,
    attempts  INTEGER NOT NULL DEFAULT 0,
    crashes   INTEGER NOT NULL DEFAULT 0,
    failures  INTEGER NOT NULL DEFAULT 0,
    engine    INTEGER,
    submitted REAL NOT NULL,
    started   REAL,
    completed REAL,
    exit_code INTEGER,
    host      TEXT,
    input     TEXT,
    value     TEXT,
    ename     TEXT,
    evalue    TEXT,
    repr      TEXT,
    stdout    TEXT,
    stderr    TEXT,
    traceback TEXT,
    pickled   TEXT
);
-- Keyed by `completed`, which changes once, not by `state`, which changes with every step of a task.
CREATE INDEX task_unfinished ON task (id) WHERE completed IS NULL;
-- (Not `state IN (…)`: SQLite would build a table of the four words for every task that changes.)
CREATE INDEX task_failed ON task (id) WHERE completed IS NOT NULL AND state <> 'ok';

CREATE TABLE attempt (
    id        INTEGER PRIMARY KEY,
    task      INTEGER NOT NULL,
    run       INTEGER NOT NULL,
    state     TEXT NOT NULL,
    crashed   INTEGER NOT NULL DEFAULT 0,
    engine    INTEGER,
    started   REAL,
    completed REAL,
    exit_code INTEGER,
    host      TEXT,
    value     TEXT,
    ename     TEXT,
    evalue    TEXT,
    repr      TEXT,
    stdout    TEXT,
    stderr    TEXT,
    traceback TEXT,
    pickled   TEXT
);
CREATE INDEX attempt_task ON attempt (task);

-- What unfinished tasks have written so far. Moves into `task` or `attempt` when the attempt ends.
CREATE TABLE output (
    id     INTEGER PRIMARY KEY,
    task   INTEGER NOT NULL,
    stream TEXT NOT NULL,
    text   TEXT NOT NULL
);
CREATE INDEX output_task ON output (task);

CREATE TABLE engine (
    uuid         TEXT NOT NULL UNIQUE,
    id           INTEGER NOT NULL,
    host         TEXT NOT NULL,
    pid          INTEGER NOT NULL,
    version      TEXT NOT NULL,
    python       TEXT NOT NULL,
    capabilities TEXT NOT NULL,
    registered   REAL NOT NULL,
    gone         REAL,
    reason       TEXT
);

CREATE TABLE request (
    task            INTEGER PRIMARY KEY,  -- task.id
    msg_id          TEXT NOT NULL UNIQUE,
    queue           TEXT NOT NULL,
    client          TEXT NOT NULL,
    engine_uuid     TEXT,
    label           TEXT,
    received        REAL,
    header          TEXT NOT NULL,
    metadata        TEXT NOT NULL,
    result_header   TEXT,
    result_metadata TEXT,
    content         TEXT NOT NULL,
    result_content  TEXT,
    error           TEXT,
    execute_input   TEXT,
    execute_result  TEXT,
    buffers         BLOB,
    result_buffers  BLOB
);
