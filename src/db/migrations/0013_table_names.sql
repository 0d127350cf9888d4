ALTER TABLE forgetting RENAME TO purging;
ALTER TABLE owed RENAME TO undelivered;
