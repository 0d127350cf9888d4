-- The code that maps run: the files of one map as one piece, stored once for all maps that have the same.
CREATE TABLE bundle (
    hash    TEXT PRIMARY KEY,  -- SHA-256 of the content
    files   INTEGER NOT NULL,
    bytes   INTEGER NOT NULL,
    content BLOB NOT NULL      -- or, as text, the name of the file beside the database that has it
);
-- The bundle of `definition`, and how often that was replaced by another (`resubmit --code current`).
ALTER TABLE map ADD COLUMN bundle TEXT;
ALTER TABLE map ADD COLUMN code INTEGER NOT NULL DEFAULT 0;
CREATE INDEX map_bundle ON map (bundle) WHERE bundle IS NOT NULL;
-- Definitions that a map had before.
CREATE TABLE earlier_code (
    map        INTEGER NOT NULL,
    code       INTEGER NOT NULL,
    definition TEXT NOT NULL,
    bundle     TEXT,
    PRIMARY KEY (map, code)
);
-- Which of them a task and an attempt ran with: `map.code` at that time.
ALTER TABLE task ADD COLUMN code INTEGER NOT NULL DEFAULT 0;
ALTER TABLE attempt ADD COLUMN code INTEGER NOT NULL DEFAULT 0;
