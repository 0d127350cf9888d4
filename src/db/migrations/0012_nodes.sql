-- What the engine's node has, as JSON; NULL if unknown.
ALTER TABLE engine ADD COLUMN node TEXT;
