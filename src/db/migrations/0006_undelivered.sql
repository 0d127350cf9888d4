-- Recorded replies that were not delivered to their clients, which are identified by key. Step 13 renames the table.
CREATE TABLE owed (
    task INTEGER PRIMARY KEY
);
