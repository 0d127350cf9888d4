"""IPython's shell and ipykernel's kernel, set up like in ipyparallel's own engine. Shares a namespace with ipython.py.

ipyparallel's engine application creates them from the profile's configuration files. Their messages are published through the engine.
"""
import copy
import logging
import os
import sys
import threading

shell = None
kernel = None
problem = None
# True once frontends can connect.
has_frontends = False
# Settings from the engine's start: traits for the shell (`--InteractiveShell.colors=nocolor`), the profile's directory.
settings = {"traits": [], "profile_dir": None}
# Traits of IPEngine that are supported; pcluster itself determines how engines find their controller.
SUPPORTED_TRAITS = {"startup_script", "startup_command", "work_dir", "use_mpi", "init_mpi"}


def configure(new_settings):
    """Sets the shell's settings; with `now` creates the shell immediately and runs its startup files."""
    settings.update(new_settings)
    if new_settings.get("now"):
        ensure_shell()


def ensure_shell():
    """Creates the shell once; if a dependency is missing, stores the error in `problem`."""
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
    return "the engine's %s cannot serve ipyparallel clients (%s); install it with: %s -m pip install ipyparallel" % (
        worker["PYTHON"],
        error,
        sys.executable,
    )


def clean(content):
    from ipykernel.jsonutil import json_clean

    return json_clean(content)


class EngineLog(logging.Handler):
    """Sends warnings of IPython's and ipyparallel's applications to the engine's log, and errors also to stderr."""

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
        """Publishes messages through the engine. Frontends (`bind_kernel`) have their own sockets."""

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
    """Skips loading the debugger, which cannot be used on an engine and is slow to load. Users may import it."""
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
        """ipyparallel's kernel without sockets: the engine delivers requests and publishes messages."""

        # Cells of frontends run in the main thread, like requests.
        _supports_kernel_subshells = False

        def _topic(self, topic):
            # The engine adds its prefix.
            return topic.encode()

        def set_parent(self, ident, parent, *args, **kwargs):
            super().set_parent(ident, parent, *args, **kwargs)
            if running_origin is None:  # of a frontend
                current_origin.set(Origin(0, parent.get("header", {})))

        async def do_execute(self, *args, **kwargs):
            # A frontend's cell runs in the loop that is already running.
            self.shell.loop_runner = awaited_by_loop()
            return await super().do_execute(*args, **kwargs)

        def enter_eventloop(self):
            """Event loops of graphical toolkits are not supported on engines."""

    return Kernel.instance(
        parent=application,
        session=session,
        iopub_socket=object(),
        user_module=worker["main"],
        user_ns=worker["namespace"],
        log=application.log,
    )


class NoChannelThread:
    """Satisfies ipykernel 7, which queries the channel's thread even if there is none."""

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
            """Opens ports for frontends (a console, %qtconsole), which use this engine as a kernel between its requests."""
            if not self._kernel_bound:
                self._kernel_bound = True
                bind(self, self.kernel_app, self.kernel)

    return Engine.instance(log=make_log())


def bind(application, app, kernel):
    global has_frontends
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

    listeners.append(show)
    kernel.start()
    has_frontends = True


def disable_input():
    """Makes input() and getpass() raise an error: an engine has no user to prompt."""
    import builtins
    import getpass

    from IPython.core.error import StdinNotImplementedError

    def refuse(prompt="", *args, **kwargs):
        raise StdinNotImplementedError(
            "input() and getpass() are not available on an engine (prompt: %r); pass the value as an argument, or push it" % str(prompt)
        )

    builtins.input = getpass.getpass = refuse


def make_shell():
    global shell, kernel
    application = make_application()
    read_settings(application)
    # The shell modifies the configuration in a way that makes an application warn.
    for_startup = copy.deepcopy(application.config)
    kernel = application.kernel = make_kernel(make_session(), application)
    made = kernel.shell
    made.display_pub.topic = b"displaypub"
    made.loop_runner = run_awaiting
    disable_input()
    shell = made
    set_loop()
    run_startup(application, for_startup)


def read_settings(application):
    """Reads the profile's files like IPython's kernel and ipyparallel's engine; options of the engine take precedence."""
    from traitlets.config.loader import KeyValueConfigLoader

    overrides = KeyValueConfigLoader(list(settings["traits"])).load_config()
    if settings["profile_dir"]:
        application.config.ProfileDir.location = settings["profile_dir"]
        application.init_profile_dir()
        application.init_config_files()
        application.config_files = ["ipython_kernel_config.py", application.config_file_name]
        application.load_config_file()
        application.init_deprecated_config()
    overrides.HistoryManager.hist_file = ":memory:"
    application.update_config(overrides)
    config = application.config
    if "IPEngine" in config:
        ignored = sorted(set(config.IPEngine) - SUPPORTED_TRAITS)
        if ignored:
            names = ", ".join("c.IPEngine." + name for name in ignored)
            application.log.warning("pcluster ignores these settings of the profile's ipengine_config.py: %s", names)
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
    """Runs an IPython kernel's startup: extensions, PYTHONSTARTUP, the profile's startup files, exec_lines, exec_files.

    matplotlib and others also find the kernel through the application.
    """
    from ipykernel.kernelapp import IPKernelApp

    app = IPKernelApp(config=config, shell=shell, kernel=kernel, log=application.log)
    IPKernelApp._instance = application.kernel_app = app
    app.init_profile_dir()
    app.init_gui_pylab()
    app.init_extensions()
    app.init_code()
