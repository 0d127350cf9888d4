-- For people, as they are now: made again after each migration.
CREATE VIEW maps AS SELECT
    id AS map, kind, name, label,
    total, ok, error + aborted + timeout + lost AS failed, running,
    total - ok - error - aborted - timeout - lost AS pending,
    strftime('%Y-%m-%d %H:%M:%f', submitted, 'unixepoch') AS submitted,
    strftime('%Y-%m-%d %H:%M:%f', completed, 'unixepoch') AS completed,
    completed - submitted AS duration
FROM map;

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
    CASE typeof(t.input) WHEN 'blob' THEN '(see pcluster results)' ELSE t.input END AS input,
    CASE typeof(t.value) WHEN 'blob' THEN '(see pcluster results)' ELSE COALESCE(t.value, t.repr) END AS value,
    t.type,
    t.ename || ': ' || COALESCE(t.evalue, '') AS error,
    CASE WHEN t.completed IS NULL THEN (SELECT group_concat(CASE typeof(o.text) WHEN 'text' THEN o.text ELSE '(see pcluster results)' END, '')
                                        FROM output o WHERE o.task = t.id AND o.stream = 'stdout')
         WHEN typeof(t.stdout) = 'blob' THEN '(see pcluster results)' ELSE t.stdout END AS stdout,
    CASE WHEN t.completed IS NULL THEN (SELECT group_concat(CASE typeof(o.text) WHEN 'text' THEN o.text ELSE '(see pcluster results)' END, '')
                                        FROM output o WHERE o.task = t.id AND o.stream = 'stderr')
         WHEN typeof(t.stderr) = 'blob' THEN '(see pcluster results)' ELSE t.stderr END AS stderr,
    t.traceback,
    r.msg_id,
    t.peak_memory,
    t.cause
FROM task t
JOIN map m ON m.id = t.id >> 32
LEFT JOIN request r ON r.task = t.id;
