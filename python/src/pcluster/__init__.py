"""The program `pcluster`, and launchers with which ipyparallel's `Cluster` starts it.

Parts: `program()` (where the program is), `pcluster.launchers`, and `python -m pcluster`, which is the program.
"""
import os
import shutil
import sys
import sysconfig

__all__ = ["program"]


def program():
    """The path of the program `pcluster`: the one installed with this package, else the first on the PATH.

    Raises FileNotFoundError where there is none.
    """
    folders = [sysconfig.get_path("scripts"), os.path.dirname(sys.executable)]
    if hasattr(sysconfig, "get_preferred_scheme"):  # from Python 3.10 on; `pip install --user` goes there
        folders.append(sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user")))
    for folder in folders:
        path = os.path.join(folder, "pcluster")
        if os.access(path, os.X_OK):
            return path
    found = shutil.which("pcluster")
    if found:
        return found
    raise FileNotFoundError(
        "the program pcluster is neither in %s nor on the PATH; install it there with `%s -m pip install pcluster`, or with `cargo install`"
        % (", ".join(folders), sys.executable)
    )
