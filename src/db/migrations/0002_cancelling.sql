-- Attempts that were cancelled while an engine had them; they are not retried. A row of an older run has no effect.
CREATE TABLE cancelling (
    task INTEGER PRIMARY KEY,
    run  INTEGER NOT NULL
);
