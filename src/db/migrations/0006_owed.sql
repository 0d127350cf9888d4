-- Replies of requests that are on record and that their clients, known by key, have not been given yet.
CREATE TABLE owed (
    task INTEGER PRIMARY KEY
);
