-- The id under which an ipyparallel client had a request run again.
ALTER TABLE request ADD COLUMN resubmitted TEXT;
