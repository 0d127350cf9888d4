"""Requests of ipyparallel clients, run in the worker with IPython's shell, as ipyparallel's own engine runs them.

Loaded by worker.py before the first such request, together with origins.py. `handle` makes the reply's content and buffers; what
the shell publishes meanwhile goes through `published`.
"""
import asyncio
import copy
import sys

shell = None
loop = None
problem = None
engine = {"engine_uuid": "", "engine_id": -1}
# What the engine was started with: traits for the shell (`--InteractiveShell.colors=nocolor`), the profile's directory.
told = {"traits": [], "profile_dir": None}


def start(worker_globals):
    worker.update(worker_globals)
    know_origins()


def tell(settings):
    """What the shell is to be made with; with `now` it is made at once, with all that runs at its start."""
    told.update(settings)
    if settings.get("now"):
        have_shell()


def have_shell():
    """Makes the shell, once; what is missing for it is kept in `problem`."""
    global shell, problem
    if shell is None and problem is None:
        try:
            make_shell()
        except ImportError as error:
            problem = missing(error)


def reset():
    if shell is not None:
        shell.reset(False)


def make_session():
    from jupyter_client.session import Session

    class PipeSession(Session):
        """Hands what would be published to the engine."""

        def send(self, stream, msg_or_type, content=None, parent=None, ident=None, buffers=None, *args, **kwargs):
            if isinstance(msg_or_type, dict):
                kind, content = msg_or_type["msg_type"], msg_or_type["content"]
                buffers = buffers or msg_or_type.get("buffers")
            else:
                kind = msg_or_type
            topic = ident[0] if isinstance(ident, list) else ident
            topic = (topic or kind.encode()).decode("utf-8", "replace")
            published(kind, topic, clean(content or {}), buffers or ())

    return PipeSession()


class Kernel:
    """What code looks for at `get_ipython().kernel`."""

    eventloop = None

    def __init__(self, session, pub_socket):
        import logging

        self.session, self.iopub_socket = session, pub_socket
        self.log = logging.getLogger("pcluster.engine")

    @property
    def shell(self):
        return shell

    @property
    def engine_id(self):
        return engine["engine_id"]

    int_id = engine_id

    @property
    def ident(self):
        return engine["engine_uuid"]

    def get_parent(self, channel=None):
        return shell.parent_header


def refuse_input():
    """There is nobody at an engine who could be asked."""
    import builtins
    import getpass

    from IPython.core.error import StdinNotImplementedError

    def refuse(prompt="", *args, **kwargs):
        raise StdinNotImplementedError(
            "input() and getpass() cannot ask anyone on an engine (asked: %r); pass the value as an argument, or push it" % str(prompt)
        )

    builtins.input = getpass.getpass = refuse


def make_shell():
    global shell
    from ipykernel.zmqshell import ZMQInteractiveShell
    from ipyparallel.engine.datapub import ZMQDataPublisher
    from traitlets.config.loader import KeyValueConfigLoader

    config = KeyValueConfigLoader(list(told["traits"])).load_config()
    config.HistoryManager.hist_file = ":memory:"
    if told["profile_dir"]:
        config.ProfileDir.location = told["profile_dir"]
    # The shell adds to its own what an application would warn of.
    for_startup = copy.deepcopy(config)
    session, pub_socket = make_session(), object()
    made = ZMQInteractiveShell.instance(config=config, user_module=worker["main"], user_ns=worker["namespace"])
    made.kernel = Kernel(session, pub_socket)
    made.displayhook.session = made.display_pub.session = session
    made.displayhook.pub_socket = made.display_pub.pub_socket = pub_socket
    made.displayhook.topic = b"execute_result"
    made.display_pub.topic = b"displaypub"
    made.data_pub = ZMQDataPublisher()
    made.data_pub.session, made.data_pub.pub_socket = session, pub_socket
    made.loop_runner = run_awaiting
    refuse_input()
    shell = made
    set_loop()
    run_startup(for_startup)


def run_startup(config):
    """What runs when an IPython kernel starts: extensions, PYTHONSTARTUP, the profile's startup files, exec_lines, exec_files.

    The application is also where matplotlib and others look for the kernel.
    """
    import logging

    from ipykernel.kernelapp import IPKernelApp

    app = IPKernelApp.instance(config=config, shell=shell, kernel=shell.kernel, log=logging.getLogger("pcluster"))
    app.init_profile_dir()
    app.init_gui_pylab()
    app.init_extensions()
    app.init_code()


# ---- what user code leaves to the event loop (tasks of a cell with `await`, a Dask worker) goes on between requests


def set_loop():
    """Functions find a loop that does not run, so `asyncio.run` works in them; cells find a running one, as in notebooks."""
    global loop
    try:
        from IPython.core.async_helpers import get_asyncio_loop

        loop = get_asyncio_loop()
    except ImportError:  # IPython 7
        if loop is None or loop.is_closed():
            loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)


def run_awaiting(coroutine):
    """A cell with `await` in it; one that is interrupted does not go on afterwards."""
    asyncio.events._set_running_loop(None)
    task = loop.create_task(coroutine)
    try:
        return loop.run_until_complete(task)
    except BaseException:
        if not task.done():
            task.cancel()
            loop.run_until_complete(asyncio.wait([task], timeout=1))
        raise
    finally:
        asyncio.events._set_running_loop(loop)


def has_background():
    if loop is None or loop.is_closed():
        return False
    return bool(getattr(loop, "_ready", None) or getattr(loop, "_scheduled", None) or asyncio.all_tasks(loop))


def run_background(descriptor):
    """Runs the loop until there is something to read."""
    asyncio.set_event_loop(loop)
    loop.add_reader(descriptor, loop.stop)
    try:
        loop.run_forever()
    except BaseException as error:
        # What ends a task must not end the worker.
        sys.stderr.write(worker["formatted"](error))
    finally:
        loop.remove_reader(descriptor)


# ---- requests


def clean(content):
    from ipykernel.jsonutil import json_clean

    return json_clean(content)


def handle(meta, parts, ticket):
    """Runs one request. meta: type, engine_uuid, engine_id; parts: header, metadata, content, buffers."""
    import json

    engine.update(engine_uuid=meta["engine_uuid"], engine_id=meta["engine_id"])
    header, metadata, content = (json.loads(bytes(part)) for part in parts[:3])
    begin(ticket, header)
    try:
        have_shell()
        if shell is None:
            return failure("ImportError", problem, ["ImportError: " + problem], meta["method"]), []
        set_loop()
        shell.set_parent({"header": header, "metadata": metadata, "content": content, "parent_header": {}})
        if meta["method"] == "apply":
            return apply(parts[3:])
        return execute(content, metadata), []
    finally:
        end()


def missing(error):
    return "the engine's %s cannot serve ipyparallel's clients (%s); install it there: %s -m pip install ipyparallel" % (
        worker["PYTHON"],
        error,
        sys.executable,
    )


def failure(ename, evalue, lines, method):
    info = dict(engine, method=method)
    return {"status": "error", "ename": ename, "evalue": evalue, "traceback": lines, "engine_info": info}


def apply(buffers):
    from ipyparallel.serialize import serialize_object, unpack_apply_message

    try:
        function, args, kwargs = unpack_apply_message(buffers, shell.user_ns, copy=False)
        result = function(*args, **kwargs)
        session = shell.display_pub.session
        made = serialize_object(result, buffer_threshold=session.buffer_threshold, item_threshold=session.item_threshold)
        return {"status": "ok"}, made
    except BaseException as error:
        shell._last_traceback = None
        try:
            trace = worker["own_frames_hidden"](error.__traceback__)
            shell.showtraceback((type(error), error, trace), tb_offset=0)
        except Exception:
            pass
        lines = shell._last_traceback or [worker["formatted"](error)]
        shell._last_traceback = None
        return clean(failure(type(error).__name__, worker["text_of"](error), lines, "apply")), []


def execute(content, metadata):
    silent = content.get("silent", False)
    code = content["code"]
    if not silent:
        sent = {"code": code, "execution_count": shell.execution_count}
        published("execute_input", "execute_input", sent)
    shell._last_traceback_during_displayhook = False
    asyncio.events._set_running_loop(loop)
    try:
        result = shell.run_cell(code, store_history=content.get("store_history", not silent), silent=silent)
    finally:
        asyncio.events._set_running_loop(None)
    error = result.error_before_exec if result.error_before_exec is not None else result.error_in_exec
    if result.success and not getattr(shell, "_last_traceback_during_displayhook", False):
        reply = {"status": "ok", "user_expressions": shell.user_expressions(content.get("user_expressions") or {})}
    else:
        lines = shell._last_traceback or []
        reply = failure(type(error).__name__, worker["text_of"](error), lines, "execute")
        reply["user_expressions"] = {}
    reply["execution_count"] = shell.execution_count - 1
    reply["payload"] = shell.payload_manager.read_payload()
    shell.payload_manager.clear_payload()
    return clean(reply)
