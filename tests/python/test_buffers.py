"""Large buffers through a real controller: whole, in few copies, and kept once."""
import json
import os
import pathlib

import pytest

ipp = pytest.importorskip("ipyparallel", reason="ipyparallel is not installed in this Python")

from conftest import Cluster, wait_until  # noqa: E402

MEGABYTE = 1_000_000
SIZE = 64 * MEGABYTE


def memory(pid, key):
    """Bytes."""
    lines = pathlib.Path("/proc/{}/status".format(pid)).read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


@pytest.fixture(scope="module")
def client_file():
    cluster = Cluster("-n", "2")
    try:
        yield cluster.ipython_dir / "profile_default" / "security" / "ipcontroller-client.json"
    finally:
        cluster.end()


def test_an_array_reaches_engines_and_comes_back_in_few_copies(client_file):
    controller = json.loads(client_file.read_text())["pcluster"]["pid"]
    buffers = client_file.parents[1] / "pcluster.db-buffers"
    with ipp.Client(connection_info=str(client_file)) as client:
        client.wait_for_engines(2, timeout=60)
        one, both = client[0], client[:]
        both.apply_sync(int)
        before = memory(controller, "VmHWM:")
        sent = bytearray(os.urandom(MEGABYTE)) * 64
        one.push({"array": sent}, block=True)
        # Gathered, decrypted, sealed again: never more than some of these at a time.
        assert memory(controller, "VmHWM:") - before < 5 * SIZE
        both.push({"array": sent}, block=True)
        both.push({"array": sent}, block=True)
        assert memory(controller, "VmHWM:") - before < 9 * SIZE
        assert both.apply_sync(ipp.interactive(lambda: len(array))) == [SIZE, SIZE]  # noqa: F821
        assert one.pull("array", block=True) == sent
        wait_until("nothing of it to be held when all is done", lambda: memory(controller, "VmRSS:") - before < SIZE // 2)
    kept = sorted(entry.stat().st_size for entry in buffers.iterdir())
    # The push, the same from every request that made it; the pull's reply.
    assert len(kept) == 2 and kept[0] >= SIZE
