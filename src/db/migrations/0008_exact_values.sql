-- Pickles are blobs from here on (those of earlier versions stay base64 texts, with a `repr` and no `value`). Beside one, `value` is
-- a rendering for people and `type` what the value is.
ALTER TABLE task ADD COLUMN type TEXT;
ALTER TABLE attempt ADD COLUMN type TEXT;
