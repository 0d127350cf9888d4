-- Pickles are blobs from here on (those of earlier versions stay base64 texts, with a `repr` and no `value`). Beside one, `value` is
-- a rendering for people and `type` what the value is.
ALTER TABLE task ADD COLUMN type TEXT;
ALTER TABLE attempt ADD COLUMN type TEXT;

DROP VIEW tasks;
CREATE VIEW tasks AS SELECT
    (t.id >> 32) || '.' || (t.id & 4294967295) AS task,
    t.id >> 32 AS map,
    t.id & 4294967295 AS task_index,
    m.name AS name,
    COALESCE(r.label, m.label) AS label,
    t.state, t.engine, t.host, t.attempts, t.exit_code,
    strftime('%Y-%m-%d %H:%M:%f', t.submitted, 'unixepoch') AS submitted,
    strftime('%Y-%m-%d %H:%M:%f', t.started, 'unixepoch') AS started,
    strftime('%Y-%m-%d %H:%M:%f', t.completed, 'unixepoch') AS completed,
    t.completed - t.started AS duration,
    t.input,
    COALESCE(t.value, t.repr) AS value,
    t.type,
    t.ename || ': ' || COALESCE(t.evalue, '') AS error,
    CASE WHEN t.completed IS NULL THEN (SELECT group_concat(o.text, '') FROM output o WHERE o.task = t.id AND o.stream = 'stdout')
         ELSE t.stdout END AS stdout,
    CASE WHEN t.completed IS NULL THEN (SELECT group_concat(o.text, '') FROM output o WHERE o.task = t.id AND o.stream = 'stderr')
         ELSE t.stderr END AS stderr,
    t.traceback,
    r.msg_id
FROM task t
JOIN map m ON m.id = t.id >> 32
LEFT JOIN request r ON r.task = t.id;
