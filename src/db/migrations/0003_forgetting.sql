-- Maps that are forgotten and whose tasks are being deleted, some at a time. Their numbers are not used again.
CREATE TABLE forgetting (
    map INTEGER PRIMARY KEY
);
