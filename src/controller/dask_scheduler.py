"""Dask's scheduler beside the controller, for ipyparallel's `become_dask`.

Its arguments come as one line of JSON on stdin, where it is goes out as one on stdout. It ends when stdin does: with the
controller, however that ends.
"""
import asyncio
import json
import os
import sys
import threading
import traceback


def say(content):
    print(json.dumps(content), flush=True)


async def run(arguments):
    from distributed import Scheduler

    async with Scheduler(**arguments) as scheduler:
        ended, loop = asyncio.Event(), asyncio.get_running_loop()

        def wait():
            sys.stdin.read()
            loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=wait, daemon=True).start()
        say({"status": "ok", "ip": scheduler.ip, "address": scheduler.address, "port": scheduler.port})
        await ended.wait()


try:
    asyncio.run(run(json.loads(sys.stdin.readline())))
except BaseException as error:
    text = "%s (in %s)" % (error, sys.executable)
    if isinstance(error, ImportError):
        text += ": pip install distributed there"
    say({"status": "error", "ename": type(error).__name__, "evalue": text, "traceback": traceback.format_exc().splitlines()})
os._exit(0)
