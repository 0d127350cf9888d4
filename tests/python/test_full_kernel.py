"""Tests of an engine as a full kernel: the profile's configuration files, comms (widgets), attached frontends."""
import json
import os
import sys

import pytest

ipp = pytest.importorskip("ipyparallel", reason="ipyparallel is not installed in this Python")

from conftest import Cluster, wait_until  # noqa: E402
from test_kernel import TIMEOUT_S, client_of, done, execute  # noqa: E402


@pytest.fixture
def engine():
    cluster = Cluster("-n", "1")
    client = client_of(cluster)
    one = client[0]
    one.cluster = cluster
    yield one
    client.close()
    cluster.run("stop")
    cluster.end()


def log_of(cluster, beginning):
    logs = (cluster.ipython_dir / "profile_default" / "log").glob(beginning + "*")
    return "".join(log.read_text() for log in sorted(logs))


def test_configuration_files_of_the_profile_are_used(engine):
    profile = engine.cluster.ipython_dir / "profile_default"
    script = profile / "script.py"
    script.write_text("from_script = 4")
    (profile / "ipython_config.py").write_text(
        "c.InteractiveShellApp.exec_lines = ['from_ipython = 1']\n"
        "c.InteractiveShellApp.extensions = ['autoreload']\n"
        "c.InteractiveShell.ast_node_interactivity = 'all'\n"
    )
    (profile / "ipython_kernel_config.py").write_text("c.InteractiveShellApp.exec_lines.append('from_kernel = 2')\n")
    (profile / "ipengine_config.py").write_text(
        "c.IPEngine.startup_command = 'from_engine = from_ipython + from_kernel'\n"
        "c.IPEngine.startup_script = %r\n"
        "c.IPEngine.timeout = 99\n" % str(script)
    )
    # They are read when the shell is created, at the first request.
    names = ["from_ipython", "from_kernel", "from_engine", "from_script"]
    assert engine.pull(names, block=True) == [1, 2, 3, 4]
    assert "autoreload" in execute(engine, "print(get_ipython().extension_manager.loaded)").stdout
    code = "1\n2"
    shown = execute(engine, code + "\nprint(get_ipython().ast_node_interactivity)")
    assert shown.stdout == "all\n" and shown.execute_result["data"]["text/plain"] == "2"
    wait_until("the log", lambda: "c.IPEngine.timeout" in log_of(engine.cluster, "engine"))


def test_an_invalid_configuration_file_is_reported_and_the_engine_works(engine):
    (engine.cluster.ipython_dir / "profile_default" / "ipython_config.py").write_text("c.InteractiveShell.colors = \n")
    first = execute(engine, "print('works')")
    assert first.stdout == "works\n"
    assert "ipython_config.py" in first.stderr and "SyntaxError" in first.stderr
    assert "ipython_config.py" in log_of(engine.cluster, "engine")


def test_the_controller_reports_ignored_configuration_files(engine):
    profile = engine.cluster.ipython_dir / "profile_default"
    engine.cluster.run("stop")
    (profile / "ipcontroller_config.py").write_text("# c.IPController.port = 1\nc.IPController.location = 'elsewhere'\n")
    (profile / "ipcluster_config.py").write_text("# Configuration file for ipcluster.\n\nc = get_config()  #noqa\n# c.Cluster.n = 3\n")
    engine.cluster.run("start", "-n", "1")
    log = log_of(engine.cluster, "controller")
    assert log.count("ipcontroller_config.py") == 1
    assert "ipcluster_config.py" not in log  # it sets nothing


def record_messages(client, kinds):
    """Records messages of these types from now on, until the client is closed."""
    messages = []
    original = client.session.deserialize

    def recording(message, *arguments, **options):
        decoded = original(message, *arguments, **options)
        if decoded["header"]["msg_type"] in kinds:
            messages.append(decoded)
        return decoded

    client.session.deserialize = recording
    return messages


def test_comms_are_published_as_messages_of_the_request(engine):
    messages = record_messages(engine.client, {"comm_open", "comm_msg", "comm_close"})
    result = execute(
        engine,
        """
import comm
opened = comm.create_comm(target_name="target", data={"a": 1}, metadata={"version": "2"})
opened.send({"b": 2}, buffers=[b"bytes"])
opened.close()
""",
    )
    wait_until("the comm to be closed", lambda: len(messages) == 3)
    assert [message["header"]["msg_type"] for message in messages] == ["comm_open", "comm_msg", "comm_close"]
    assert {message["parent_header"]["msg_id"] for message in messages} == set(result.msg_ids)
    assert messages[0]["content"]["target_name"] == "target" and messages[0]["metadata"]["version"] == "2"
    assert messages[1]["content"]["data"] == {"b": 2} and bytes(messages[1]["buffers"][0]) == b"bytes"
    assert execute(engine, "print(type(get_ipython().kernel).__mro__[1].__name__)").stdout == "IPythonParallelKernel\n"


def test_a_frontend_can_attach_to_an_engine(engine):
    from jupyter_client import BlockingKernelClient

    execute(engine, "from ipyparallel import bind_kernel\nbind_kernel()\nbind_kernel()\nhere = 'in the namespace'")
    info = json.loads(execute(engine, "from ipykernel import get_connection_info\nprint(get_connection_info())").stdout)
    assert '"shell_port"' in execute(engine, "%connect_info").stdout
    frontend = BlockingKernelClient()
    frontend.load_connection_info(info)
    frontend.start_channels()
    try:
        frontend.wait_for_ready(timeout=TIMEOUT_S)
        shown = []
        code = "print(here)\nthere = 'from the frontend'\nhere"
        reply = frontend.execute_interactive(code, timeout=TIMEOUT_S, output_hook=shown.append)
        assert reply["content"]["status"] == "ok"
        kinds = {message["header"]["msg_type"]: message["content"] for message in shown}
        texts = [message["content"]["text"] for message in shown if message["header"]["msg_type"] == "stream"]
        assert "".join(texts) == "in the namespace\n"
        assert kinds["execute_result"]["data"]["text/plain"] == "'in the namespace'"
        # A waiting cell does not block requests of clients.
        waiting = frontend.execute("import asyncio\ngo = asyncio.Event()\nawait go.wait()")
        wait_until("the cell to start", lambda: engine.apply(has, "go").get(TIMEOUT_S))
        assert engine.pull("there", block=True) == "from the frontend"
        execute(engine, "go.set()")
        assert frontend.get_shell_msg(timeout=TIMEOUT_S)["parent_header"]["msg_id"] == waiting
    finally:
        frontend.stop_channels()
    assert engine.apply_sync(os.getpid) == engine.apply_sync(os.getpid)


@ipp.interactive
def has(name):
    return name in globals()
