# What a test started ends with it: run as `sh -c "$(cat guard.sh)" guard FOLDER` with a pipe as stdin, in a session of its
# own. Reads until the pipe is closed, which also happens when the test process is killed; then kills every process of
# the folder (known by its IPYTHONDIR), and those that they start in each other's place meanwhile, and removes the folder.
cat >/dev/null
# One process looks at all processes, and one call kills all that it finds: slower, and a supervisor and what it
# supervises bring each other back for ever.
while
    found=$(grep -lzxF "IPYTHONDIR=$1/ipython" /proc/[0-9]*/environ 2>/dev/null | tr -dc '0-9\n' | tr '\n' ' ')
    [ -n "$found" ]
do
    kill -KILL $found 2>/dev/null
done
rm -rf "$1"
