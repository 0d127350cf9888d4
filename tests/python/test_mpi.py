"""Tests of engines under mpiexec: mpi4py in their workers forms one MPI world.

A worker is a child of the engine that mpiexec started; it inherits the variables and descriptors needed to join from its engine.
mpi4py from PyPI supports both MPIs and finds the library at run time (docs/reference/python.md).
"""
import ctypes.util
import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

ipp = pytest.importorskip("ipyparallel", reason="ipyparallel is not installed in this Python")

from conftest import Cluster, pcluster_binary, wait_until  # noqa: E402
from ipyparallel import interactive  # noqa: E402

RANKS = 3
TIMEOUT_S = 60


def mpiexec_of(kind):
    """The mpiexec command of this MPI, or None."""
    named = shutil.which("mpiexec." + kind)
    if named:
        return named
    plain = shutil.which("mpiexec")
    if plain is None:
        return None
    output = subprocess.run([plain, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True).stdout
    words = {"openmpi": ("Open MPI", "OpenRTE"), "mpich": ("HYDRA", "MPICH")}[kind]
    return plain if any(word in output for word in words) else None


def environment_of(kind, folder):
    """Variables for running an MPI as root and for selecting mpi4py's library."""
    if kind == "openmpi":
        return {
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_rmaps_base_oversubscribe": "1",
            "MPI4PY_MPIABI": "openmpi",
        }
    # Debian calls the library libmpich.so.12, mpi4py looks for libmpi.so.12.
    library = ctypes.util.find_library("mpich")
    if library is None:
        return {"MPI4PY_MPIABI": "mpich"}
    found = next((f + library for f in ("/lib/x86_64-linux-gnu/", "/lib/aarch64-linux-gnu/", "/usr/lib64/", "/usr/lib/") if os.path.exists(f + library)), library)
    (folder / "lib").mkdir()
    (folder / "lib" / "libmpi.so.12").symlink_to(found)
    return {"MPI4PY_MPIABI": "mpich", "LD_LIBRARY_PATH": str(folder / "lib")}


@interactive
def rank_and_size():
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    return world.Get_rank(), world.Get_size(), MPI.Get_library_version()


@interactive
def sum_over_all(mine):
    from mpi4py import MPI

    return MPI.COMM_WORLD.allreduce(mine)


@pytest.mark.parametrize("kind", ["openmpi", "mpich"])
def test_workers_of_engines_under_mpiexec_are_one_world(kind, tmp_path):
    mpiexec = mpiexec_of(kind)
    if mpiexec is None:
        pytest.skip("there is no mpiexec of {} (on Debian: apt-get install {})".format(kind, {"openmpi": "openmpi-bin"}.get(kind, kind)))
    if importlib.util.find_spec("mpi4py") is None:
        pytest.skip("mpi4py is not installed in this Python")
    cluster = Cluster("-n", "0")
    environment = dict(cluster.environment, **environment_of(kind, tmp_path))
    command = [mpiexec, "-n", str(RANKS), pcluster_binary(), "engine", "--python", sys.executable]
    with open(str(tmp_path / "engines.log"), "w+") as log:
        engines = subprocess.Popen(
            command, env=environment, cwd=str(cluster.folder), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            client = ipp.Client(
                connection_info=str(cluster.ipython_dir / "profile_default/security/ipcontroller-client.json"), timeout=30
            )
            try:
                wait_until("the engines", lambda: len(client) == RANKS)
                everyone = client[:]
                output = everyone.apply_async(rank_and_size).get(TIMEOUT_S)
                assert sorted(rank for rank, _, _ in output) == list(range(RANKS))
                assert {size for _, size, _ in output} == {RANKS}
                assert all({"openmpi": "Open MPI", "mpich": "MPICH"}[kind] in version for _, _, version in output)
                # Collective operations from a client, in functions and in cells, repeatedly.
                assert everyone.apply_async(sum_over_all, 2).get(TIMEOUT_S) == [2 * RANKS] * RANKS
                everyone.scatter("part", list(range(2 * RANKS)), block=True)
                everyone.execute("from mpi4py import MPI\ntotal = MPI.COMM_WORLD.allreduce(sum(part))").get(TIMEOUT_S)
                assert everyone.pull("total").get(TIMEOUT_S) == [sum(range(2 * RANKS))] * RANKS
                client.shutdown(targets="all", block=True)
            finally:
                client.close()
            # The exit code depends on the MPI: Open MPI reports a rank that did not call MPI_Finalize in time.
            engines.wait(TIMEOUT_S)
        except BaseException:
            log.seek(0)
            print(log.read())
            raise
        finally:
            engines.kill()
            engines.wait()
            cluster.run("stop")
            cluster.end()
