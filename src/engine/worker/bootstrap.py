import sys
if sys.version_info < (3, 8):
    sys.stderr.write("Python %s is too old, 3.8 is the oldest that pcluster's worker runs on\n" % sys.version.split()[0])
    sys.exit(97)
import os
with os.fdopen(int(sys.argv[1]), "rb") as script:
    source = script.read()
exec(compile(source, "<pcluster worker>", "exec"), {"__name__": "pcluster_worker"})
