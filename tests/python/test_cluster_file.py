"""Tests of ipyparallel listing, opening and stopping pcluster's clusters, and of stopping its own Cluster early."""
import json
import os
import pathlib
import subprocess
import sys
import threading

import ipyparallel as ipp
import pytest
from ipyparallel.cluster.cluster import ClusterManager

from conftest import REPOSITORY, Cluster, pcluster_binary, wait_until


@pytest.fixture
def cluster():
    cluster = Cluster("-n", "2")
    yield cluster
    cluster.end()


def profile_dir(cluster):
    return str(cluster.ipython_dir / "profile_default")


def cluster_file(cluster, cluster_id=""):
    return cluster.ipython_dir / "profile_default" / "security" / "cluster-{}.json".format(cluster_id)


def state_of(cluster):
    return json.loads(cluster.run("list", "--json"))["clusters"][0]["state"]


def pids_below(folder):
    """Processes whose environment contains this directory."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes() if entry.name.isdigit() else b""
            words = (entry / "cmdline").read_bytes() if environment else b""
        except OSError:
            continue
        if str(folder).encode() in environment and words and b"guard" not in words and int(entry.name) != os.getpid():
            found.append((int(entry.name), words.replace(b"\0", b" ").decode(errors="replace")))
    return found


def test_ipcluster_lists_it_with_its_engines(cluster):
    def listed():
        done = subprocess.run(
            [sys.executable, "-m", "ipyparallel.cluster", "list"],
            env=cluster.environment,
            stdout=subprocess.PIPE,
            universal_newlines=True,
            timeout=60,
            check=True,
        )
        return [line.split() for line in done.stdout.splitlines()[1:]]

    assert listed() == [["default", "''", "True", "2", "Local"]]
    cluster.run("scale", "3")
    assert [row[3] for row in listed()] == ["3"]
    assert cluster_file(cluster).stat().st_mode & 0o777 == 0o600
    cluster.run("stop")
    assert not cluster_file(cluster).exists()
    assert listed() == []


def test_it_is_opened_and_its_client_connects(cluster):
    opened = ipp.Cluster.from_file(profile_dir=profile_dir(cluster))
    before = cluster_file(cluster).read_text()
    with opened.connect_client_sync() as client:
        assert client.ids == [0, 1]
        assert client[:].apply_sync(max, 1, 2) == [2, 2]
    # Like Jupyter's list of clusters.
    clusters = ClusterManager().load_clusters(profile_dirs=[profile_dir(cluster)])
    assert len(clusters) == 1 and all(found.controller.running for found in clusters.values())
    assert json.loads(cluster_file(cluster).read_text())["controller"] == json.loads(before)["controller"]


def test_it_is_stopped_by_ipyparallel_and_its_logs_remain(cluster):
    opened = ipp.Cluster.from_file(profile_dir=profile_dir(cluster))
    opened.stop_cluster_sync()
    wait_until("the end of its processes", lambda: not pids_below(cluster.ipython_dir))
    assert not cluster_file(cluster).exists()
    logs = sorted(path.name for path in (cluster.ipython_dir / "profile_default" / "log").iterdir())
    assert logs == ["controller.log", "engine-0.log", "engine-1.log"]
    # A regular end: no leftovers, and it can start again.
    assert state_of(cluster) == "stopped"
    cluster.run("start", "-n", "1")
    assert state_of(cluster) == "running"


def test_stopping_an_ipyparallel_cluster_before_its_engines_register_leaves_no_processes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "python" / "src"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    from pcluster.launchers import PclusterControllerLauncher, PclusterEngineSetLauncher

    directory = str(tmp_path / "ipython" / "profile_default")
    for pause in [0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5]:
        cluster = ipp.Cluster(
            profile_dir=directory,
            controller=PclusterControllerLauncher,
            engines=PclusterEngineSetLauncher,
            n=2,
            delay=0,
            shutdown_atexit=False,
        )
        cluster.config.PclusterControllerLauncher.controller_cmd = [pcluster_binary(), "controller"]
        cluster.config.PclusterEngineSetLauncher.engine_cmd = [pcluster_binary(), "engine", "--python", sys.executable]
        cluster.config.PclusterEngineSetLauncher.delay = 0
        cluster.start_controller_sync()
        cluster.start_engines_sync(n=2)
        threading.Event().wait(pause)
        cluster.stop_cluster_sync()
        wait_until("the end of all after {} s".format(pause), lambda: not pids_below(tmp_path / "ipython"), 20)
