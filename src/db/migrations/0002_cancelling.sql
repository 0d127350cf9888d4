-- Attempts that were cancelled while they were with an engine: whatever ends one, there is no other. A row of an older run says nothing.
CREATE TABLE cancelling (
    task INTEGER PRIMARY KEY,
    run  INTEGER NOT NULL
);
