"""Records what an ipyparallel client and an ipengine say to a pcluster controller, as inputs for the fuzzer.

    PCLUSTER_BIN=target/debug/pcluster target/python/bin/python fuzz/record.py

writes fuzz/corpus/wire/recorded_*, fuzz/corpus/content/recorded.lines and fuzz/corpus/core/recorded. Needs ipyparallel. Run it again
when ipyparallel changes its messages.
"""

import base64
import getpass
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HOOK = '''
import base64, json, os, threading
try:
    from jupyter_client.session import Session
except ImportError:
    Session = None
if Session is not None:
    send, serialize = Session.send, Session.serialize
    now = threading.local()

    def recorded_send(self, stream, msg_or_type, *args, **words):
        buffers = words.get("buffers") or (args[3] if len(args) > 3 else None)
        now.buffers = [bytes(memoryview(b)) for b in buffers or []]
        try:
            return send(self, stream, msg_or_type, *args, **words)
        finally:
            now.buffers = []

    def recorded_serialize(self, msg, ident=None):
        frames = serialize(self, msg, ident)
        parts = [bytes(f).decode("utf8", "replace") for f in frames[-4:]]
        idents = ident if isinstance(ident, list) else [ident] if ident else []
        line = {"who": os.getpid(), "type": msg["header"]["msg_type"], "parts": parts,
                "idents": [base64.b64encode(bytes(i)).decode() for i in idents],
                "buffers": [base64.b64encode(b).decode() for b in getattr(now, "buffers", [])]}
        with open(os.environ["RECORDING"], "a") as file:
            file.write(json.dumps(line) + "\\\\n")
        return frames

    Session.send, Session.serialize = recorded_send, recorded_serialize
'''.replace("\\\\", "\\")

SESSION = """
import sys, time
import ipyparallel as ipp
client = ipp.Client(profile_dir=sys.argv[1], timeout=60)
client.wait_for_engines(2, timeout=60)
direct, balanced, cast = client[:], client.load_balanced_view(), client.broadcast_view(is_coalescing=True)
direct.push({"x": 3}, block=True)
direct.pull("x", block=True)
direct.execute("print(x); y = x * 2", block=True)
direct.scatter("s", list(range(8)), block=True)
direct.gather("s", block=True)
def fails(n): return 1 // n
first = balanced.apply_async(pow, 2, 10)
with balanced.temp_flags(after=[first], retries=1):
    second = balanced.apply_async(fails, 0)
second.wait(30)
cast.apply_sync(abs, -1)
cast.is_coalescing = False
cast.apply_sync(abs, -1)
slow = direct.apply_async(time.sleep, 0.5)
late = direct.apply_async(abs, -2)
client.abort(late.msg_ids, block=True)
slow.wait(10)
client.queue_status(verbose=True)
client.hub_history()
client.db_query({"completed": {"$ne": None}}, keys=["msg_id", "completed"])
client.result_status(first.msg_ids)
client.resubmit(first.msg_ids).wait(30)
client.purge_hub_results("all")
client.close()
"""


def record(folder):
    (folder / "sitecustomize.py").write_text(HOOK)
    env = dict(os.environ, PYTHONPATH=str(folder), RECORDING=str(folder / "messages"), IPYTHONDIR=str(folder / "ipython"))
    pcluster = os.path.abspath(os.environ.get("PCLUSTER_BIN", "target/debug/pcluster"))
    run = lambda *words: subprocess.run(words, env=env, cwd=folder, check=True)
    run(pcluster, "start", "-n", "2", "--engine", "ipengine", "--python", sys.executable)
    try:
        run(sys.executable, "-c", SESSION, str(folder / "ipython/profile_default"))
    finally:
        run(pcluster, "stop")
    recorded = []
    for line in (folder / "messages").read_text().splitlines():
        message = json.loads(line)
        message["parts"] = [nowhere(part.encode()).decode() for part in message["parts"]]
        message["buffers"] = [base64.b64encode(nowhere(base64.b64decode(b))).decode() for b in message["buffers"]]
        recorded.append(message)
    return recorded


def nowhere(data):
    """Without this machine's paths and its user's name."""
    places = [(sys.prefix, "/venv"), (sys.base_prefix, "/python"), (tempfile.gettempdir(), "/temporary"), (getpass.getuser(), "user")]
    for place, instead in places:
        data = data.replace(place.encode(), instead.encode())
    return data


def one_line(data):
    return data.replace(b"\n", b" ").replace(b"\t", b" ").replace(b"|", b" ")[:300]


def core_line(message, engines, ids):
    """A line of a script for the core, and with it the id that the fuzzer gives this message."""
    kind = message["type"]
    parent, metadata, content = message["parts"][1], message["parts"][2], message["parts"][3]
    buffers = [one_line(base64.b64decode(b)).decode("latin1") for b in message["buffers"]]
    if message["who"] in engines:
        who = engines[message["who"]]
        if kind == "registration_request":
            return ["r" + who, "registrant", kind, metadata, content, parent]
        if kind.endswith("_reply"):
            channel = json.loads(metadata or "{}").get("channel", "mux")
            return [who, "stock." + channel, kind, metadata, content, parent] + buffers
        return [who, "stock.iopub", kind, metadata, content, parent] if kind in ("stream", "status", "execute_input", "error") else None
    if kind == "apply_request":
        meta = json.loads(metadata or "{}")
        channel = "broadcast" if "is_broadcast" in meta else "mux" if message["idents"] else "task"
    elif kind == "execute_request":
        channel = "mux"
    elif kind in ("abort_request", "clear_request", "shutdown_request"):
        channel = "control"
    else:
        channel = "registration"
    return ["c1", channel, kind, metadata, content, parent] + buffers


def main():
    corpus = pathlib.Path(__file__).resolve().parent / "corpus"
    with tempfile.TemporaryDirectory() as folder:
        recorded = record(pathlib.Path(folder))
    registrations = [s for s in recorded if s["type"] == "registration_request"]
    engines = {s["who"]: "e%d" % (i + 1) for i, s in enumerate(registrations)}
    uuids = {json.loads(s["parts"][3])["uuid"]: engines[s["who"]] for s in registrations}
    seen, contents, script, ids = {}, [], [], {}
    for message in recorded:
        text = json.dumps(message["parts"])
        for uuid, name in uuids.items():
            text = text.replace(uuid, name)
        for msg_id, name in ids.items():
            text = text.replace(msg_id, name)
        message["parts"] = json.loads(text)
        line = core_line(message, engines, ids)
        if line:
            # The fuzzer counts the messages that it makes.
            ids[json.loads(message["parts"][0])["msg_id"]] = "m_%d" % (len([l for l in script if not l.startswith("pong")]) + 1)
            script.append("\t".join(line))
            if line[2] == "registration_request":
                script.append("pong\t" + line[0][1:])
        count = seen[message["type"]] = seen.get(message["type"], 0) + 1
        if count <= 2:
            contents.append(message["parts"][3])
        if count == 1:
            frames = [base64.b64decode(i) for i in message["idents"]] + [b"<IDS|MSG>", b""]
            frames += [part.encode() for part in message["parts"]] + [base64.b64decode(b) for b in message["buffers"]]
            (corpus / "wire" / ("recorded_" + message["type"])).write_bytes(b"\n".join(f.replace(b"\n", b" ")[:2000] for f in frames))
    (corpus / "content" / "recorded.lines").write_text("\n".join(dict.fromkeys(contents)) + "\n")
    (corpus / "core" / "recorded").write_bytes("\n".join(script).encode("latin1", "replace") + b"\n")
    print("%d messages; %d kinds" % (len(recorded), len(seen)))


main()
