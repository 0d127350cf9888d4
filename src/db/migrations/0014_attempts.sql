-- The most memory that the processes of an attempt had at a time, in bytes; NULL if not measured.
ALTER TABLE task ADD COLUMN peak_memory INTEGER;
ALTER TABLE attempt ADD COLUMN peak_memory INTEGER;
-- Why it failed, in one word.
ALTER TABLE task ADD COLUMN cause TEXT;
ALTER TABLE attempt ADD COLUMN cause TEXT;
-- What it asks for in place of its map's request, as JSON; NULL for the map's own.
ALTER TABLE task ADD COLUMN ask TEXT;
ALTER TABLE attempt ADD COLUMN ask TEXT;
-- Used retries with more memory, and with more time.
ALTER TABLE task ADD COLUMN memory_retries INTEGER NOT NULL DEFAULT 0;
ALTER TABLE task ADD COLUMN time_retries INTEGER NOT NULL DEFAULT 0;
