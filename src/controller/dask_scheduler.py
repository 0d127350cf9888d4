"""Dask's scheduler as a child process of the controller, for ipyparallel's `become_dask`.

It reads its arguments as one line of JSON from stdin and writes its address as one to stdout. It exits when stdin
closes, so also when the controller is killed.
"""
import asyncio
import json
import os
import sys
import threading
import traceback


def send(content):
    print(json.dumps(content), flush=True)


async def run(arguments):
    from distributed import Scheduler

    async with Scheduler(**arguments) as scheduler:
        ended, loop = asyncio.Event(), asyncio.get_running_loop()

        def wait():
            sys.stdin.read()
            loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=wait, daemon=True).start()
        send({"status": "ok", "ip": scheduler.ip, "address": scheduler.address, "port": scheduler.port})
        await ended.wait()


try:
    asyncio.run(run(json.loads(sys.stdin.readline())))
except BaseException as error:
    text = "%s (in %s)" % (error, sys.executable)
    if isinstance(error, ImportError):
        text += "; install it with: %s -m pip install distributed" % sys.executable
    send({"status": "error", "ename": type(error).__name__, "evalue": text, "traceback": traceback.format_exc().splitlines()})
os._exit(0)
