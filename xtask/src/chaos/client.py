"""An unmodified ipyparallel client with many requests outstanding. Arguments: profile directory, database, first input, count.

Prints one line of JSON: how many replies it has, which are wrong, and of the missing ones which are on record.
"""
import json
import os
import sqlite3
import sys
import time

import ipyparallel as ipp

# After this time without a reply, requests that the controller never had are given up; those that it has accepted only after LOST_S.
QUIET_S, LOST_S, CONNECT_S = 60, 200, 600
profile_dir, database, first, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


def request(n, folder):
    import os
    import time

    pid = os.getppid()
    for _ in range(4):
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            if file.read().split(b"\0")[1:2] == [b"engine"]:
                break
        with open("/proc/%d/stat" % pid) as file:
            pid = int(file.read().rsplit(")", 1)[1].split()[1])
    with open(folder + "/ledger-of-requests", "ab", buffering=0) as ledger:
        ledger.write(b"%d %d %d\n" % (n, pid, os.getpid()))
    time.sleep(0.005)
    return n * n + 1


def on_record(msg_ids):
    """Those that the controller has accepted, and those of them that it has a reply of."""
    found = {}
    with sqlite3.connect("file:%s?mode=ro" % database, uri=True, timeout=60) as records:
        for msg_id in msg_ids:
            row = records.execute("SELECT received IS NOT NULL FROM request WHERE msg_id = ?", (msg_id,)).fetchone()
            if row is not None:
                found[msg_id] = bool(row[0])
    return found


def undelivered():
    """Requests whose replies the controller has not written to a connection."""
    with sqlite3.connect("file:%s?mode=ro" % database, uri=True, timeout=60) as records:
        return {msg_id for (msg_id,) in records.execute("SELECT msg_id FROM request JOIN undelivered USING (task)")}


def expected(msg_ids):
    """Requests whose replies are still to come."""
    accepted, waiting = on_record(msg_ids), undelivered()
    return [msg_id for msg_id, replied in accepted.items() if not replied or msg_id in waiting]


def ports():
    with open(profile_dir + "/security/ipcontroller-client.json") as file:
        return {name: value for name, value in json.load(file).items() if type(value) is int}


def patiently(ask, *arguments):
    """The files are replaced, and missing between a loss of all processes and a start."""
    until = time.monotonic() + 60
    while True:
        try:
            return ask(*arguments)
        except (OSError, ValueError, sqlite3.OperationalError):
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def connected():
    """The controller may be killed before it has answered, and between a loss of all processes and a start there is no file."""
    until = time.monotonic() + CONNECT_S
    while True:
        try:
            return ports(), ipp.Client(profile_dir=profile_dir, timeout=30)
        except (OSError, ValueError, TimeoutError, ipp.error.TimeoutError) as error:
            if time.monotonic() > until:
                raise
            print("connecting again: %s: %s" % (type(error).__name__, error), file=sys.stderr)
            time.sleep(0.5)


def missing_of(results):
    return [result.msg_ids[0] for result in results if not result.ready()]


before, client = connected()
view = client.load_balanced_view()
view.retries = 1000
results = [view.apply_async(request, n, os.getcwd()) for n in range(first, first + count)]
ready, since, limit_s = 0, time.monotonic(), QUIET_S
while ready < count:
    quiet_s = time.monotonic() - since
    if quiet_s > limit_s:
        moved = patiently(ports) != before
        if quiet_s > LOST_S or moved or not patiently(expected, missing_of(results)):
            break
        limit_s = quiet_s + 10
    now = sum(result.ready() for result in results)
    if now != ready:
        ready, since, limit_s = now, time.monotonic(), QUIET_S
    time.sleep(0.1)
wrong, missing = [], missing_of(results)
for n, result in zip(range(first, first + count), results):
    if not result.ready():
        continue
    try:
        value = result.get(timeout=10)
    except Exception as error:
        value = "%s: %s" % (type(error).__name__, error)
    if value != n * n + 1:
        wrong.append([n, value])
accepted = patiently(on_record, missing)
waiting = patiently(undelivered)
# What the controller had written to the connection, and this client had not read, is lost with a kill; the records have it.
unread = [msg_id for msg_id, replied in accepted.items() if replied and msg_id not in waiting]
fetched = {}
if unread:
    asking = connected()[1].get_result(unread, owner=False, block=False)
    try:
        fetched = dict(zip(unread, asking.get(timeout=LOST_S)))
    except Exception as error:
        print("get_result: %s: %s" % (type(error).__name__, error), file=sys.stderr)
inputs = {result.msg_ids[0]: n for n, result in zip(range(first, first + count), results)}
wrong += [[inputs[msg_id], value] for msg_id, value in fetched.items() if value != inputs[msg_id] ** 2 + 1]
print(
    json.dumps(
        {
            "ready": ready,
            "wrong": wrong[:5],
            "ports_changed": patiently(ports) != before,
            "never_accepted": len(missing) - len(accepted),
            "accepted_without_reply": [msg_id for msg_id, replied in accepted.items() if not replied][:5],
            "fetched": len(fetched),
            "reply_on_record_not_given": [id for id, replied in accepted.items() if replied and id not in fetched][:5],
        }
    ),
    flush=True,
)
os._exit(0)
