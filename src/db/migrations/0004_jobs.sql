-- The batch job that an engine is in, and when its time is over (seconds since 1970).
ALTER TABLE engine ADD COLUMN job TEXT NOT NULL DEFAULT '';
ALTER TABLE engine ADD COLUMN ends REAL;
