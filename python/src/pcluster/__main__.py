"""`python -m pcluster …` is `pcluster …`."""
import os
import sys

from pcluster import program

path = program()
os.execv(path, [path] + sys.argv[1:])
