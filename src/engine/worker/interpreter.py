# ---- the interpreter: forks workers on request and reports their ends. The last module: it starts the process.
import _socket

FORKED, NOT_FORKED, ENDED = struct.Struct("<cIi"), struct.Struct("<cI"), struct.Struct("<cii")
REQUEST, FILES = struct.Struct("<I?"), struct.Struct("=7i")


def be_interpreter(descriptor):
    control = _socket.socket(fileno=descriptor)
    os.set_inheritable(descriptor, False)
    wake, waker = _socket.socketpair()
    wake.setblocking(False)
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    workers = set()
    find_facts()
    sys.path[:] = users_path
    gc.collect()
    gc.freeze()
    waiting = select.poll()
    waiting.register(control, select.POLLIN)
    waiting.register(wake, select.POLLIN)
    try:
        while True:
            ready = [descriptor for descriptor, _ in waiting.poll()]
            if wake.fileno() in ready:
                wake.recv(4096)
                report_ends(control, workers)
            if descriptor not in ready:
                continue
            request, extra, _, _ = control.recvmsg(256, _socket.CMSG_SPACE(FILES.size), MSG_CMSG_CLOEXEC)
            if not request:
                break
            files = FILES.unpack(extra[0][2][: FILES.size])
            number, hello_after_shell = REQUEST.unpack_from(request)
            if fork(control, number, workers) == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                for it in (control, wake, waker):
                    it.close()
                os.environ["PCLUSTER_WORKER"] = request[REQUEST.size :].decode()
                return hello_after_shell, files
            for file in files:
                os.close(file)
    except OSError:
        pass  # the engine is gone
    for pid in workers:
        try:
            os.killpg(pid, signal.SIGKILL)
        except OSError:
            pass
    os._exit(0)


def fork(control, number, workers):
    try:
        pid = os.fork()
    except OSError as error:
        control.send(NOT_FORKED.pack(b"N", number) + ("cannot fork a worker: %s" % error).encode())
        return -1
    if pid == 0:
        # Its own process group: signals reach the worker and its children.
        os.setsid()
    else:
        workers.add(pid)
        control.send(FORKED.pack(b"F", number, pid))
    return pid


def report_ends(control, workers):
    while workers:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        workers.discard(pid)
        control.send(ENDED.pack(b"X", pid, status))


MSG_CMSG_CLOEXEC = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)

for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
hello_after_shell, files = be_interpreter(int(sys.argv[2]))
be_worker(*files)
