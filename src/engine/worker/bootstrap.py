import sys
if sys.version_info < (3, 8):
    sys.stderr.write("Python %s is too old, 3.8 is the oldest that pcluster's worker runs on\n" % sys.version.split()[0])
    sys.exit(97)
# A file of the user's must not be taken for a module of the standard library: neither one in the working directory, which is
# first in sys.path, nor one in a directory of PYTHONPATH. They are there again for user code.
path = sys.path[:]
import os
users = [os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "\0").split(os.pathsep)] + [""]
sys.path[:] = [place for place in path if place not in users] + [place for place in path if place in users and place]
with os.fdopen(int(sys.argv[1]), "rb") as script:
    source = script.read()
exec(compile(source, "<pcluster worker>", "exec"), {"__name__": "pcluster_worker", "users_path": path})
