"""A pytest plugin that makes ipyparallel's own tests start pcluster's programs instead of ipyparallel's.

It changes only the two command lines of the launchers, like a site's configuration, and nothing in the tests. The outcome of each
test is written as a JSON line to the file named in PCLUSTER_REPORT.

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
entries = {}


def pytest_runtest_logreport(report):
    """Records the most significant outcome of a test's three phases: a failure, a skip, or success."""
    if hasattr(report, "wasxfail"):
        outcome = "xpassed" if report.passed else "xfailed"
    else:
        outcome = report.outcome
    entry = entries.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0, "why": ""})
    entry["seconds"] += report.duration
    if outcome in ("failed", "skipped", "xfailed", "xpassed") and entry["outcome"] != "failed":
        entry["outcome"] = outcome
        entry["why"] = why(report)
    if report.when == "teardown" and REPORT:
        name = report.nodeid.split("ipyparallel/tests/")[-1]
        with open(REPORT, "a") as file:
            file.write(json.dumps(dict(entries.pop(report.nodeid), test=name)) + "\n")


def why(report):
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2]
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr or "")).strip().split("\n")[0][:300]
