"""A pytest plugin: ipyparallel's own tests start pcluster's programs where they would start ipyparallel's.

Changed are the two command lines that its launchers begin with, as a site would set them, and nothing of the tests. What
each test came to is written, one JSON line each, to the file named in PCLUSTER_REPORT.

PCLUSTER_BIN is the program, PCLUSTER_ENGINE the engine (`pcluster`, `ipengine`); without the first, nothing is replaced.
"""

import json
import os
import sys

from ipyparallel.cluster import launcher

PROGRAM = os.environ.get("PCLUSTER_BIN")
ENGINE = os.environ.get("PCLUSTER_ENGINE", "pcluster")

if PROGRAM:
    CONTROLLER = [PROGRAM, "controller", "--python", sys.executable]
    launcher.ipcontroller_cmd_argv[:] = CONTROLLER
    launcher.ControllerLauncher.controller_cmd.default_args = (CONTROLLER,)
    if ENGINE == "pcluster":
        ENGINES = [PROGRAM, "engine", "--python", sys.executable]
        launcher.ipengine_cmd_argv[:] = ENGINES
        launcher.EngineLauncher.engine_cmd.default_args = (ENGINES,)

REPORT = os.environ.get("PCLUSTER_REPORT")
words = {}


def pytest_runtest_logreport(report):
    """Of a test's three phases the one that says most: a failure, else a skip, else that it passed."""
    if hasattr(report, "wasxfail"):
        word = "xpassed" if report.passed else "xfailed"
    else:
        word = report.outcome
    said = words.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0, "why": ""})
    said["seconds"] += report.duration
    if word in ("failed", "skipped", "xfailed", "xpassed") and said["outcome"] != "failed":
        said["outcome"] = word
        said["why"] = why(report)
    if report.when == "teardown" and REPORT:
        name = report.nodeid.split("ipyparallel/tests/")[-1]
        with open(REPORT, "a") as file:
            file.write(json.dumps(dict(words.pop(report.nodeid), test=name)) + "\n")


def why(report):
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2]
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr or "")).strip().split("\n")[0][:300]
