# A site's configuration for processes that ipyparallel's tests start (`python -m ipyparallel.cluster start`). It is placed in the
# test environment, where IPython finds it.
import os
import sys

c = get_config()  # noqa: F821
program = os.environ.get("PCLUSTER_BIN")
if program and os.environ.get("PCLUSTER_REPORT"):
    c.ControllerLauncher.controller_cmd = [program, "controller", "--python", sys.executable]
    if os.environ.get("PCLUSTER_ENGINE", "pcluster") == "pcluster":
        c.EngineLauncher.engine_cmd = [program, "engine", "--python", sys.executable]
