import sys
if sys.version_info < (3, 8):
    sys.stderr.write("Python %s is too old: pcluster's worker requires Python 3.8 or later\n" % sys.version.split()[0])
    sys.exit(97)
# User files must not shadow modules of the standard library, whether in the working directory, which is first in sys.path, or in
# a directory of PYTHONPATH. These directories are restored for user code.
path = sys.path[:]
import os
for name in sys.argv[3:]:  # for this process
    os.environ.pop(name, None)
users = [os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "\0").split(os.pathsep)] + [""]
sys.path[:] = [place for place in path if place not in users] + [place for place in path if place in users and place]
with os.fdopen(int(sys.argv[1]), "rb") as script:
    source = script.read()
exec(compile(source, "<pcluster worker>", "exec"), {"__name__": "pcluster_worker", "users_path": path})
