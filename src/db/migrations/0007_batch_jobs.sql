-- Jobs of a batch system, one row per array element, as last seen. Job ids are reused, names are not.
CREATE TABLE job (
    name      TEXT NOT NULL,
    element   INTEGER NOT NULL,
    launcher  TEXT NOT NULL,
    id        TEXT NOT NULL,
    engines   INTEGER NOT NULL,
    replaces  INTEGER NOT NULL,
    submitted REAL NOT NULL,
    state     TEXT NOT NULL,
    reason    TEXT NOT NULL,
    over      INTEGER NOT NULL,
    since     REAL NOT NULL,
    PRIMARY KEY (name, element)
);
