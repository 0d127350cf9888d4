-- Purged maps whose tasks are deleted in batches. Their numbers are not reused. Step 13 renames the table.
CREATE TABLE forgetting (
    map INTEGER PRIMARY KEY
);
