"""IPython's shell and ipykernel's kernel, as ipyparallel's own engine has them. One namespace with ipython.py.

They are made by ipyparallel's application for engines, from the profile's settings files. What they publish goes to the engine.
"""
import copy
import logging
import os
import sys
import threading

shell = None
kernel = None
problem = None
# Frontends are listened to.
listens = False
# What the engine was started with: traits for the shell (`--InteractiveShell.colors=nocolor`), the profile's directory.
told = {"traits": [], "profile_dir": None}
# Settings of IPEngine that mean something here; how engines find their controller is pcluster's to say.
HONOURED = {"startup_script", "startup_command", "work_dir", "use_mpi", "init_mpi"}


def tell(settings):
    """What the shell is to be made with; with `now` it is made at once, with all that runs at its start."""
    told.update(settings)
    if settings.get("now"):
        have_shell()


def have_shell():
    """Makes the shell, once; what is missing for it is kept in `problem`."""
    global problem
    if shell is None and problem is None:
        try:
            make_shell()
        except ImportError as error:
            problem = missing(error)


def reset():
    if shell is not None:
        shell.reset(False)


def missing(error):
    return "the engine's %s cannot serve ipyparallel's clients (%s); install it there: %s -m pip install ipyparallel" % (
        worker["PYTHON"],
        error,
        sys.executable,
    )


def clean(content):
    from ipykernel.jsonutil import json_clean

    return json_clean(content)


class EngineLog(logging.Handler):
    """Warnings of IPython's and ipyparallel's applications go to the engine's log, errors to stderr too."""

    def emit(self, record):
        text = self.format(record)
        worker["log"](text)
        if record.levelno >= logging.ERROR:
            sys.stderr.write(text + "\n")


def make_log():
    log = logging.getLogger("pcluster")
    log.propagate = False
    log.setLevel(logging.WARNING)
    log.handlers[:] = [EngineLog()]
    return log


def make_session():
    from jupyter_client.session import Session

    class PipeSession(Session):
        """Hands what would be published to the engine. Frontends (`bind_kernel`) have sockets of their own."""

        def send(self, stream, msg_or_type, content=None, parent=None, ident=None, buffers=None, *args, **kwargs):
            if kernel is not None and stream is not kernel.iopub_socket:
                return super().send(stream, msg_or_type, content, parent, ident, buffers, *args, **kwargs)
            metadata = kwargs.get("metadata")
            if isinstance(msg_or_type, dict):
                kind, content = msg_or_type["msg_type"], msg_or_type["content"]
                metadata = metadata or msg_or_type.get("metadata")
                buffers = buffers or msg_or_type.get("buffers")
            else:
                kind = msg_or_type
            topic = ident[0] if isinstance(ident, list) else ident
            topic = (topic or kind.encode()).decode("utf-8", "replace")
            published(kind, topic, clean(content or {}), buffers or (), clean(metadata or {}))

    return PipeSession()


def without_debugger():
    """A debugger has no way to an engine, and takes long to load. Users may import it."""
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    if "debugpy" not in sys.modules:
        sys.modules["debugpy"] = None
        try:
            import ipykernel.debugger  # noqa: F401
        except ImportError:  # before ipykernel 6
            pass
        finally:
            del sys.modules["debugpy"]


def make_kernel(session, application):
    without_debugger()
    from ipyparallel.engine.kernel import IPythonParallelKernel

    class Kernel(IPythonParallelKernel):
        """ipyparallel's kernel without sockets: the engine brings requests and takes what is published."""

        # Cells of frontends run in the main thread, as those of requests.
        _supports_kernel_subshells = False

        def _topic(self, topic):
            # The engine adds its own.
            return topic.encode()

        def set_parent(self, ident, parent, *args, **kwargs):
            super().set_parent(ident, parent, *args, **kwargs)
            if running_origin is None:  # of a frontend
                origin_here.set(Origin(0, parent.get("header", {})))

        async def do_execute(self, *args, **kwargs):
            # A frontend's cell runs in the loop that runs already.
            self.shell.loop_runner = awaited_by_loop()
            return await super().do_execute(*args, **kwargs)

        def enter_eventloop(self):
            """Loops of graphical toolkits do not run on engines."""

    return Kernel.instance(
        parent=application,
        session=session,
        iopub_socket=object(),
        user_module=worker["main"],
        user_ns=worker["namespace"],
        log=application.log,
    )


class NoChannelThread:
    """ipykernel 7 asks where its cells run, also where it has no thread for the channel."""

    parent_thread = threading.main_thread()

    def __bool__(self):
        return False


def awaited_by_loop():
    try:
        from IPython.core.interactiveshell import _asyncio_runner

        return _asyncio_runner
    except ImportError:
        return run_awaiting


def make_application():
    from ipyparallel.engine.app import IPEngine

    class Engine(IPEngine):
        name = "ipengine"

        def bind_kernel(self, **kwargs):
            """Opens ports at which frontends (a console, %qtconsole) use this engine as a kernel, between its requests."""
            if not self._kernel_bound:
                self._kernel_bound = True
                bind(self, self.kernel_app, self.kernel)

    return Engine.instance(log=make_log())


def bind(application, app, kernel):
    global listens
    import zmq
    from ipykernel.control import ControlThread
    from ipykernel.iostream import IOPubThread
    from zmq.eventloop.zmqstream import ZMQStream

    sockets = {name: application.context.socket(kind) for name, kind in (("shell", zmq.ROUTER), ("control", zmq.ROUTER), ("stdin", zmq.ROUTER))}
    publisher = application.context.socket(zmq.XPUB)
    app.init_connection_file()
    for name, socket in list(sockets.items()) + [("iopub", publisher)]:
        socket.linger = 1000
        setattr(app, name + "_port", app._bind_socket(socket, getattr(app, name + "_port")))
    app.session = kernel.session
    app.init_heartbeat()
    app.connection_dir = application.profile_dir.security_dir
    app.write_connection_file()
    kernel.shell_channel_thread = NoChannelThread()
    kernel.stdin_socket = sockets["stdin"]
    kernel.control_thread = ControlThread(daemon=True)
    kernel.control_thread.start()
    kernel.control_stream = ZMQStream(sockets["control"], kernel.control_thread.io_loop)
    kernel.shell_stream = ZMQStream(sockets["shell"])
    try:
        frontends = IOPubThread(publisher, session=kernel.session)
    except TypeError:  # before ipykernel 7
        frontends = IOPubThread(publisher)
    frontends.start()

    def show(kind, topic, content, parent, buffers, metadata):
        kernel.session.send(frontends, kind, content, parent=parent, ident=topic.encode(), buffers=list(buffers), metadata=metadata)

    also_to.append(show)
    kernel.start()
    listens = True


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
    global shell, kernel
    application = make_application()
    read_settings(application)
    # The shell adds to its own what an application would warn of.
    for_startup = copy.deepcopy(application.config)
    kernel = application.kernel = make_kernel(make_session(), application)
    made = kernel.shell
    made.display_pub.topic = b"displaypub"
    made.loop_runner = run_awaiting
    refuse_input()
    shell = made
    set_loop()
    run_startup(application, for_startup)


def read_settings(application):
    """The profile's files, as IPython's kernel and ipyparallel's engine read them; what the engine was started with wins."""
    from traitlets.config.loader import KeyValueConfigLoader

    given = KeyValueConfigLoader(list(told["traits"])).load_config()
    if told["profile_dir"]:
        application.config.ProfileDir.location = told["profile_dir"]
        application.init_profile_dir()
        application.init_config_files()
        application.config_files = ["ipython_kernel_config.py", application.config_file_name]
        application.load_config_file()
        application.init_deprecated_config()
    given.HistoryManager.hist_file = ":memory:"
    application.update_config(given)
    config = application.config
    if "IPEngine" in config:
        ignored = sorted(set(config.IPEngine) - HONOURED)
        if ignored:
            names = ", ".join("c.IPEngine." + name for name in ignored)
            application.log.warning("pcluster's engines ignore of the profile's ipengine_config.py: %s", names)
        if "work_dir" in config.IPEngine:
            os.chdir(application.work_dir)
    lines, files = configured(config, "exec_lines"), configured(config, "exec_files")
    if application.use_mpi and application.init_mpi:
        lines.insert(0, application.init_mpi)
    if application.startup_script:
        files.append(application.startup_script)
    if application.startup_command:
        lines.append(application.startup_command)
    config.IPKernelApp.exec_lines, config.IPKernelApp.exec_files = lines, files


def configured(config, name):
    for section in ("IPKernelApp", "InteractiveShellApp"):
        if section in config and name in config[section]:
            return copy.copy(config[section][name])
    return []


def run_startup(application, config):
    """What runs when an IPython kernel starts: extensions, PYTHONSTARTUP, the profile's startup files, exec_lines, exec_files.

    The application is also where matplotlib and others look for the kernel.
    """
    from ipykernel.kernelapp import IPKernelApp

    app = IPKernelApp(config=config, shell=shell, kernel=kernel, log=application.log)
    IPKernelApp._instance = application.kernel_app = app
    app.init_profile_dir()
    app.init_gui_pylab()
    app.init_extensions()
    app.init_code()
