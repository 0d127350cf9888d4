"""An engine as a full kernel: the profile's settings files, comms (widgets), and frontends that are attached to it."""
import json
import os
import sys

import pytest

ipp = pytest.importorskip("ipyparallel", reason="ipyparallel is not installed in this Python")

from conftest import Cluster, wait_until  # noqa: E402
from test_kernel import PATIENCE_S, client_of, done, execute  # noqa: E402


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


def test_settings_files_of_the_profile_count(engine):
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
    # They are read when the shell is made, with the first request.
    names = ["from_ipython", "from_kernel", "from_engine", "from_script"]
    assert engine.pull(names, block=True) == [1, 2, 3, 4]
    assert "autoreload" in execute(engine, "print(get_ipython().extension_manager.loaded)").stdout
    code = "1\n2"
    shown = execute(engine, code + "\nprint(get_ipython().ast_node_interactivity)")
    assert shown.stdout == "all\n" and shown.execute_result["data"]["text/plain"] == "2"
    wait_until("the log", lambda: "c.IPEngine.timeout" in log_of(engine.cluster, "engine"))


def test_a_settings_file_with_an_error_is_reported_and_the_engine_works(engine):
    (engine.cluster.ipython_dir / "profile_default" / "ipython_config.py").write_text("c.InteractiveShell.colors = \n")
    first = execute(engine, "print('works')")
    assert first.stdout == "works\n"
    assert "ipython_config.py" in first.stderr and "SyntaxError" in first.stderr
    assert "ipython_config.py" in log_of(engine.cluster, "engine")


def test_the_controller_names_the_settings_files_that_it_ignores(engine):
    profile = engine.cluster.ipython_dir / "profile_default"
    engine.cluster.run("stop")
    (profile / "ipcontroller_config.py").write_text("# c.IPController.port = 1\nc.IPController.location = 'elsewhere'\n")
    (profile / "ipcluster_config.py").write_text("# Configuration file for ipcluster.\n\nc = get_config()  #noqa\n# c.Cluster.n = 3\n")
    engine.cluster.run("start", "-n", "1")
    log = log_of(engine.cluster, "controller")
    assert log.count("ipcontroller_config.py") == 1
    assert "ipcluster_config.py" not in log  # it sets nothing


def heard_of(client, kinds):
    """Messages of these kinds that come from now on, until the client is closed."""
    heard = []
    original = client.session.deserialize

    def noting(message, *arguments, **options):
        told = original(message, *arguments, **options)
        if told["header"]["msg_type"] in kinds:
            heard.append(told)
        return told

    client.session.deserialize = noting
    return heard


def test_comms_are_published_as_messages_of_the_request(engine):
    heard = heard_of(engine.client, {"comm_open", "comm_msg", "comm_close"})
    result = execute(
        engine,
        """
import comm
opened = comm.create_comm(target_name="target", data={"a": 1}, metadata={"version": "2"})
opened.send({"b": 2}, buffers=[b"bytes"])
opened.close()
""",
    )
    wait_until("the comm to be closed", lambda: len(heard) == 3)
    assert [message["header"]["msg_type"] for message in heard] == ["comm_open", "comm_msg", "comm_close"]
    assert {message["parent_header"]["msg_id"] for message in heard} == set(result.msg_ids)
    assert heard[0]["content"]["target_name"] == "target" and heard[0]["metadata"]["version"] == "2"
    assert heard[1]["content"]["data"] == {"b": 2} and bytes(heard[1]["buffers"][0]) == b"bytes"
    assert execute(engine, "print(type(get_ipython().kernel).__mro__[1].__name__)").stdout == "IPythonParallelKernel\n"


def test_a_frontend_is_attached_to_an_engine(engine):
    from jupyter_client import BlockingKernelClient

    execute(engine, "from ipyparallel import bind_kernel\nbind_kernel()\nbind_kernel()\nhere = 'in the namespace'")
    info = json.loads(execute(engine, "from ipykernel import get_connection_info\nprint(get_connection_info())").stdout)
    assert '"shell_port"' in execute(engine, "%connect_info").stdout
    frontend = BlockingKernelClient()
    frontend.load_connection_info(info)
    frontend.start_channels()
    try:
        frontend.wait_for_ready(timeout=PATIENCE_S)
        shown = []
        code = "print(here)\nthere = 'from the frontend'\nhere"
        reply = frontend.execute_interactive(code, timeout=PATIENCE_S, output_hook=shown.append)
        assert reply["content"]["status"] == "ok"
        kinds = {message["header"]["msg_type"]: message["content"] for message in shown}
        texts = [message["content"]["text"] for message in shown if message["header"]["msg_type"] == "stream"]
        assert "".join(texts) == "in the namespace\n"
        assert kinds["execute_result"]["data"]["text/plain"] == "'in the namespace'"
        # A cell that waits does not keep the engine from its clients.
        waiting = frontend.execute("import asyncio\ngo = asyncio.Event()\nawait go.wait()")
        wait_until("the cell to begin", lambda: engine.apply(has, "go").get(PATIENCE_S))
        assert engine.pull("there", block=True) == "from the frontend"
        execute(engine, "go.set()")
        assert frontend.get_shell_msg(timeout=PATIENCE_S)["parent_header"]["msg_id"] == waiting
    finally:
        frontend.stop_channels()
    assert engine.apply_sync(os.getpid) == engine.apply_sync(os.getpid)


@ipp.interactive
def has(name):
    return name in globals()
