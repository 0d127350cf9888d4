# What a test started ends with it: run as `sh -c "$(cat guard.sh)" guard FOLDER` with a pipe as stdin, in a session of its
# own. Reads until the pipe is closed, which also happens when the test process is killed; then kills every process of
# the folder (known by its IPYTHONDIR), and those that they start in each other's place meanwhile, and removes the folder.
cat >/dev/null
found=1
while [ -n "$found" ]; do
    found=
    # One process looks at all: a machine that runs many tests has hundreds of processes.
    for environ in $(grep -lzxF "IPYTHONDIR=$1/ipython" /proc/[0-9]*/environ 2>/dev/null); do
        pid=${environ#/proc/}
        kill -KILL "${pid%/environ}" 2>/dev/null && found=1
    done
done
rm -rf "$1"
