"""Tests of large buffers through a real controller: intact, with few copies, stored once."""
import json
import os
import pathlib
import subprocess
import sys

import pytest

ipp = pytest.importorskip("ipyparallel", reason="ipyparallel is not installed in this Python")

from conftest import Cluster, pcluster_binary, wait_until  # noqa: E402

MEGABYTE = 1_000_000
SIZE = 64 * MEGABYTE


def memory(pid, key):
    """A value of /proc/PID/status in bytes."""
    lines = pathlib.Path("/proc/{}/status".format(pid)).read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


@pytest.fixture(scope="module")
def client_file():
    cluster = Cluster("-n", "2")
    try:
        yield cluster.ipython_dir / "profile_default" / "security" / "ipcontroller-client.json"
    finally:
        cluster.end()


def test_arrays_are_transferred_with_few_copies(client_file):
    controller = json.loads(client_file.read_text())["pcluster"]["pid"]
    buffers = client_file.parents[1] / "pcluster.db-buffers"
    with ipp.Client(connection_info=str(client_file)) as client:
        client.wait_for_engines(2, timeout=60)
        one, both = client[0], client[:]
        both.apply_sync(int)
        before = memory(controller, "VmHWM:")
        sent = bytearray(os.urandom(MEGABYTE)) * 64
        one.push({"array": sent}, block=True)
        # Received, decrypted, encrypted again: only a few copies at a time.
        assert memory(controller, "VmHWM:") - before < 5 * SIZE
        both.push({"array": sent}, block=True)
        both.push({"array": sent}, block=True)
        assert memory(controller, "VmHWM:") - before < 9 * SIZE
        assert both.apply_sync(ipp.interactive(lambda: len(array))) == [SIZE, SIZE]  # noqa: F821
        assert one.pull("array", block=True) == sent
        wait_until("the controller to free the memory", lambda: memory(controller, "VmRSS:") - before < SIZE // 2)
    kept = sorted(entry.stat().st_size for entry in buffers.iterdir())
    # The pushed buffer, shared by all requests, and the reply to the pull.
    assert len(kept) == 2 and kept[0] >= SIZE


def test_an_engine_on_the_controllers_host_uses_its_files(client_file):
    """Nothing is sent, received or copied: the worker maps the file copy-on-write."""
    numpy = pytest.importorskip("numpy")
    buffers = client_file.parents[1] / "pcluster.db-buffers"
    with ipp.Client(connection_info=str(client_file)) as client:
        client.wait_for_engines(2, timeout=60)
        one = client[0]
        engine = one.apply_sync(ipp.interactive(lambda: __import__("os").getppid()))
        before = memory(engine, "VmHWM:")
        earlier = set(buffers.iterdir())
        sent = numpy.random.default_rng(1).integers(0, 256, SIZE, dtype="uint8")
        one.push({"mapped": sent}, block=True)
        (file,) = set(buffers.iterdir()) - earlier
        kept = file.read_bytes()
        assert memory(engine, "VmHWM:") - before < SIZE // 8

        def change():
            mapped[:1000] += 1  # noqa: F821
            return open("/proc/self/maps").read(), mapped.ctypes.data % 64  # noqa: F821

        maps, unaligned = one.apply_sync(ipp.interactive(change))
        assert file.name in maps and unaligned == 0
        assert file.read_bytes() == kept
        # The request and its file are deleted; the pushed value remains.
        client.purge_everything()
        wait_until("the file to be gone", lambda: not file.exists())
        sent[:1000] += 1
        assert (one.pull("mapped", block=True) == sent).all()
        one.push({"mapped": None}, block=True)


def test_an_engine_without_access_to_the_files_receives_their_content(client_file):
    """Like on another host, where the directory in the engine file is a different one or missing."""
    engine_file = client_file.with_name("ipcontroller-engine.json")
    content = json.loads(engine_file.read_text())
    content["pcluster"]["buffers"]["boot_id"] = "another host's"
    elsewhere = client_file.with_name("elsewhere.json")
    elsewhere.write_text(json.dumps(content))
    command = [pcluster_binary(), "engine", "--file", str(elsewhere), "--python", sys.executable]
    with ipp.Client(connection_info=str(client_file)) as client:
        client.wait_for_engines(2, timeout=60)
        known = set(client.ids)
        engine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            (third,) = wait_until("the third engine", lambda: set(client.ids) - known)
            sent = bytearray(os.urandom(MEGABYTE)) * 4
            client[[0, third]].push({"array": sent}, block=True)

            def inspect():
                return bytes(array), "db-buffers" in open("/proc/self/maps").read()  # noqa: F821

            assert client[third].apply_sync(ipp.interactive(inspect)) == (sent, False)
            assert client[0].pull("array", block=True) == sent
        finally:
            engine.kill()
            engine.wait()
