"""Runs requests of ipyparallel clients in the worker with IPython's shell, like ipyparallel's own engine.

Loaded by worker.py before the first request, together with origins.py and kernel.py. `handle` returns the reply's content and
buffers; messages that the shell publishes go through `published`.
"""
import asyncio
import sys

loop = None
engine = {"engine_uuid": "", "engine_id": -1}


def start(worker_globals):
    worker.update(worker_globals)
    track_origins()


# ---- tasks that user code leaves in the event loop (a cell with `await`, a Dask worker) continue between requests


def set_loop():
    """Functions get a loop that is not running, so that `asyncio.run` works in them; cells get a running one, as in notebooks."""
    global loop
    try:
        from IPython.core.async_helpers import get_asyncio_loop

        loop = get_asyncio_loop()
    except ImportError:  # IPython 7
        if loop is None or loop.is_closed():
            loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)


def run_awaiting(coroutine):
    """Runs a cell with `await`; cancels it if it is interrupted."""
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
    if has_frontends:
        return True
    if loop is None or loop.is_closed():
        return False
    return bool(getattr(loop, "_ready", None) or getattr(loop, "_scheduled", None) or asyncio.all_tasks(loop))


def run_background(descriptor):
    """Runs the loop until the descriptor is readable."""
    asyncio.set_event_loop(loop)
    loop.add_reader(descriptor, loop.stop)
    try:
        loop.run_forever()
    except BaseException as error:
        # An exception of a background task must not end the worker.
        sys.stderr.write(worker["formatted"](error))
    finally:
        loop.remove_reader(descriptor)


# ---- requests


def handle(meta, parts, ticket):
    """Runs one request. meta: type, engine_uuid, engine_id; parts: header, metadata, content, buffers."""
    import json

    engine.update(engine_uuid=meta["engine_uuid"], engine_id=meta["engine_id"])
    header, metadata, content = (json.loads(bytes(part)) for part in parts[:3])
    begin(ticket, header)
    try:
        ensure_shell()
        if shell is None:
            return failure("ImportError", problem, ["ImportError: " + problem], meta["method"]), []
        set_loop()
        shell.loop_runner = run_awaiting
        if kernel.ident != meta["engine_uuid"] or kernel.engine_id != meta["engine_id"]:
            kernel.ident, kernel.engine_id = meta["engine_uuid"], meta["engine_id"]
        kernel.set_parent([], {"header": header, "metadata": metadata, "content": content, "parent_header": {}})
        if meta["method"] == "apply":
            return apply(parts[3:])
        return execute(content, metadata), []
    finally:
        end()


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
