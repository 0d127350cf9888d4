"""Tests of the wheel, installed by pip together with ipyparallel into an otherwise empty environment.

`cargo xtask wheel --profile dev` builds the wheel; PCLUSTER_TEST_WHEEL is its path.
"""
import json
import os
import pathlib
import subprocess
import sys

import pytest
from conftest import REPOSITORY

WHEEL = os.environ.get("PCLUSTER_TEST_WHEEL")
pytestmark = [
    pytest.mark.skipif(not WHEEL, reason="PCLUSTER_TEST_WHEEL names no wheel (cargo xtask wheel --profile dev)"),
    pytest.mark.timeout(300),
]

# A typical session of an ipyparallel user.
SESSION = """
import json, os, signal, sys, time
import ipyparallel as ipp

cluster = ipp.Cluster(controller="pcluster", engines="pcluster", n=4)
client = cluster.start_and_connect_sync()
seen = {"ids": client.ids}
seen["squares"] = client.load_balanced_view().map_sync(lambda n: n * n, range(10))
seen["python"] = client[0].apply_sync(lambda: __import__("sys").executable)
seen["secrets in the engines' environment"] = client[:].apply_sync(
    lambda: [name for name in __import__("os").environ if "CONNECTION" in name]
)

again = ipp.Cluster.from_file(cluster.cluster_file)
seen["launchers"] = [type(again.controller).__name__, type(again.engine_set).__name__]
seen["from_file"] = again.connect_client_sync().ids
logs = [again.controller.output_file] + [engine.output_file for engine in again.engine_set.launchers.values()]
seen["logs"] = [len(open(log).read()) > 0 for log in logs]
pids = [cluster.controller.pid] + [engine.pid for engine in cluster.engine_set.launchers.values()]
seen["programs"] = [os.path.basename(os.readlink("/proc/%d/exe" % pid)) for pid in pids]

with client[:].sync_imports(quiet=True):
    import signal, time
client[:].apply_sync(lambda: signal.signal(signal.SIGUSR1, signal.default_int_handler) and None)
sleeping = client[:].apply_async(lambda: (print("asleep", flush=True), time.sleep(600)))
while not all(out for out in sleeping.stdout):
    time.sleep(0.01)
cluster.signal_engines_sync(signal.SIGUSR1)
try:
    sleeping.get(60)
except ipp.RemoteError as error:
    seen["signal"] = sorted({one[0] for one in error.elist})

client.close()
cluster.stop_cluster_sync()
seen["still running"] = [pid for pid in pids if os.path.exists("/proc/%d" % pid)]
seen["cluster file"] = os.path.exists(cluster.cluster_file)

# pcluster's controller with ipyparallel's engines.
with ipp.Cluster(controller="pcluster", engines="local", n=1) as client:
    seen["ipyparallel engine"] = client[:].apply_sync(lambda: 1)
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The `bin` folder of an environment with the wheel and ipyparallel installed by pip."""
    folder = tmp_path_factory.mktemp("wheel") / "environment"
    run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    run(pip + [WHEEL + "[ipyparallel]"])
    return folder / "bin"


def run(words, cwd=None, **environment):
    cleared = {k: v for k, v in os.environ.items() if not k.startswith(("PCLUSTER_", "PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        words,
        cwd=cwd,
        env=dict(cleared, **environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        timeout=240,
    )
    assert done.returncode == 0, "{} ended with {}:\n{}{}".format(words, done.returncode, done.stdout, done.stderr)
    return done.stdout


def test_pip_installs_the_program(installed):
    version = run([str(installed / "pcluster"), "--version"])
    assert version.startswith("pcluster ")
    assert run([str(installed / "python"), "-m", "pcluster", "--version"]) == version
    where = run([str(installed / "python"), "-c", "import pcluster; print(pcluster.program())"])
    assert pathlib.Path(where.strip()) == installed / "pcluster"


def test_ipyparallels_cluster_starts_it_without_configuration(installed, tmp_path):
    script = tmp_path / "session.py"
    script.write_text(SESSION)
    python = str(installed / "python")
    output = run([python, str(script)], cwd=str(tmp_path), IPYTHONDIR=str(tmp_path / "ipython"))
    assert json.loads(output.splitlines()[-1]) == {
        "ids": [0, 1, 2, 3],
        "squares": [n * n for n in range(10)],
        "python": python,
        "secrets in the engines' environment": [[]] * 4,
        "launchers": ["PclusterControllerLauncher", "PclusterEngineSetLauncher"],
        "from_file": [0, 1, 2, 3],
        "logs": [True] * 5,
        "programs": ["pcluster"] * 5,
        "signal": ["KeyboardInterrupt"],
        "still running": [],
        "cluster file": False,
        "ipyparallel engine": [1],
    }
