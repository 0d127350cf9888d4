"""Launchers of ipyparallel: `ipp.Cluster(controller="pcluster", engines="pcluster")`.

This controller serves engines of ipyparallel (`engines="local"`) too; these engines speak with pcluster's controller alone.
Processes run on this host; their output goes to the profile's log directory, as that of ipyparallel's own does.
"""
import sys

from ipyparallel.cluster.launcher import LocalControllerLauncher, LocalEngineLauncher, LocalEngineSetLauncher
from traitlets import List, Unicode, default

from pcluster import program


class ClusterPlace:
    """Which cluster it is, in words that pcluster understands."""

    @property
    def cluster_args(self):
        return ["--profile-dir", self.profile_dir, "--cluster-id", self.cluster_id]


class PclusterControllerLauncher(ClusterPlace, LocalControllerLauncher):
    """Starts `pcluster controller` on this host"""

    controller_cmd = List(Unicode(), config=True, help="The command that starts a controller.")

    @default("controller_cmd")
    def _default_controller_cmd(self):
        return [program(), "controller"]


class PclusterEngineLauncher(ClusterPlace, LocalEngineLauncher):
    """Starts one `pcluster engine` on this host"""

    def get_env(self):
        # What this would carry is read from the engine's connection file, which others cannot read.
        environment = super().get_env()
        environment.pop("IPP_CONNECTION_INFO", None)
        return environment


class PclusterEngineSetLauncher(LocalEngineSetLauncher):
    """Starts `pcluster engine` on this host, n times; tasks run in the Python of this process"""

    launcher_class = PclusterEngineLauncher

    engine_cmd = List(Unicode(), config=True, help="The command that starts an engine.")

    @default("engine_cmd")
    def _default_engine_cmd(self):
        return [program(), "engine", "--python", sys.executable]
