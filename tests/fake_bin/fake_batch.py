"""Batch systems that cannot be installed where the tests run: LSF, HTCondor, OpenPBS.

Called by the name of one of their commands, as its first argument. What a job runs really runs, as processes of this host; what the
commands print has the form of tests/fixtures/batch/, whose files say where it is from. The jobs' records are in $FAKE_BATCH_DIR.
While there is a file `pending` in it, jobs stay in the queue, for the reason that the file gives. If there is a file
`kill_submitter`, the next job is submitted, but the process that submits it is killed before it learns of that.
"""
import json
import os
import re
import shlex
import signal
import subprocess
import sys

HOME = os.environ["FAKE_BATCH_DIR"]


def fail(code, text):
    sys.stderr.write(text + "\n")
    sys.exit(code)


def path_of(job):
    return os.path.join(HOME, "job-{}.json".format(job))


def jobs():
    names = sorted(name for name in os.listdir(HOME) if name.startswith("job-"))
    found = [json.load(open(os.path.join(HOME, name))) for name in names]
    return sorted(found, key=lambda job: job["id"])


def save(job):
    with open(path_of(job["id"]) + ".new", "w") as file:
        json.dump(job, file)
    os.rename(path_of(job["id"]) + ".new", path_of(job["id"]))


def submit(name, indices, is_array, command, environment, cwd, output=None):
    """Starts a process for each index; `environment` and `output` are functions of job and index."""
    job = 1 + max([0] + [j["id"] for j in jobs()])
    record = {"id": job, "name": name, "array": is_array, "elements": {}}
    if os.path.exists(os.path.join(HOME, "pending")):
        reason = open(os.path.join(HOME, "pending")).read()
        record["elements"] = {str(index): {"pending": reason, "cancelled": False} for index in indices}
        save(record)
        return job
    for index in indices:
        ended = os.path.join(HOME, "end-{}-{}".format(job, index))
        words = " ".join(shlex.quote(word) for word in command(job, index))
        line = "{}; echo $? > {}.new; mv {}.new {}".format(words, ended, ended, ended)
        log = open(output(job, index), "ab") if output else subprocess.DEVNULL
        # A batch system hands on what it wants, not what the shell has.
        keep = {key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR", "LANG") if key in os.environ}
        process = subprocess.Popen(
            ["/bin/sh", "-c", line], cwd=cwd, env=dict(keep, **environment(job, index)), stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )
        record["elements"][str(index)] = {"pid": process.pid, "cancelled": False}
    save(record)
    killing = os.path.join(HOME, "kill_submitter")
    if os.path.exists(killing):
        os.remove(killing)
        os.kill(os.getppid(), signal.SIGKILL)
    return job


def code_of(job, index):
    """The exit code; none while it runs."""
    try:
        return int(open(os.path.join(HOME, "end-{}-{}".format(job["id"], index))).read())
    except FileNotFoundError:
        return None


def cancel(job, index):
    element = job["elements"][str(index)]
    element["cancelled"] = True
    save(job)
    if "pending" in element:
        open(os.path.join(HOME, "end-{}-{}".format(job["id"], index)), "w").write("130")
    if code_of(job, index) is None:
        try:
            os.killpg(element["pid"], signal.SIGTERM)
        except ProcessLookupError:
            pass


def elements(job):
    return [(int(index), element, code_of(job, index)) for index, element in sorted(job["elements"].items(), key=lambda e: int(e[0]))]


def directives(text, prefix):
    """The words of all directive lines, in a list."""
    lines = [line[len(prefix):] for line in text.splitlines() if line.startswith(prefix + " ")]
    return [shlex.split(line) for line in lines]


def option(lines, name):
    return next((words[1] for words in lines if words[0] == name and len(words) > 1), None)


# LSF


def bsub(_arguments):
    text = sys.stdin.read()
    lines = directives(text, "#BSUB")
    queue = option(lines, "-q") or "normal"
    if queue == "nope":
        fail(255, "nope: No such queue. Job not submitted.")
    spelled = re.match(r"([^\[]+)(?:\[1-(\d+)\])?$", option(lines, "-J"))
    n = int(spelled.group(2) or 1)
    is_array = spelled.group(2) is not None
    script = os.path.join(HOME, "lsf-{}.sh".format(os.getpid()))
    open(script, "w").write(text)
    log = option(lines, "-o")
    job = submit(
        spelled.group(1), range(1, n + 1), is_array, lambda job, index: ["/bin/bash", script],
        lambda job, index: {"LSB_JOBID": str(job), "LSB_JOBINDEX": str(index if is_array else 0)},
        option(lines, "-cwd"), lambda job, index: log.replace("%J", str(job)).replace("%I", str(index)),
    )
    print("Job is submitted to <pi> project.")
    print("Job <{}> is submitted to default queue <{}>.".format(job, queue))


def bjobs(arguments):
    wanted = arguments[arguments.index("-J") + 1] if "-J" in arguments else None
    found = [job for job in jobs() if wanted in (None, job["name"])]
    if not found:
        fail(255, "No job found")
    for job in found:
        for index, element, code in elements(job):
            state, reason = ("RUN", "-") if code is None else ("DONE", "-") if code == 0 else ("EXIT", "-")
            waits = element.get("pending", "-")
            if code is None and "pending" in element:
                state = "PEND"
            if state == "EXIT" and element["cancelled"]:
                reason = "TERM_OWNER: job killed by owner"
            suffix = "[{}]".format(index) if job["array"] else ""
            print("|".join([str(job["id"]), str(index if job["array"] else 0), state, "fake1", str(code or "-"), reason, waits, job["name"] + suffix]))


def bkill(arguments):
    for word in arguments:
        spelled = re.match(r"(\d+)(?:\[(\d+)\])?$", word)
        job = next((job for job in jobs() if str(job["id"]) == spelled.group(1)), None)
        if job is None:
            fail(255, "Job <{}>: No matching job found".format(word))
        for index, _, _ in elements(job):
            if spelled.group(2) in (None, str(index)):
                cancel(job, index)
        print("Job <{}> is being terminated".format(word))


# HTCondor


def condor_submit(arguments):
    lines = open(arguments[0]).read().splitlines()
    values = dict(line.split(" = ", 1) for line in lines if " = " in line and not line.startswith("#"))
    count = next((int(line.split()[1]) for line in lines if line.startswith("queue ")), None)
    if count is None:
        fail(1, 'ERROR: "{}" doesn\'t contain any "queue" commands -- no jobs queued'.format(arguments[0]))

    def command(job, index):
        words = values["arguments"].replace("$(Cluster)", str(job)).replace("$(Process)", str(index - 1))
        return [values["executable"]] + words.split()

    job = submit(values["batch_name"], range(1, count + 1), True, command, lambda job, index: {}, values["initialdir"])
    print("Submitting job(s){}\n{} job(s) submitted to cluster {}.".format("." * count, count, job))


def ads(arguments, over):
    numbers = [word for word in arguments if word.isdigit()]
    wanted = re.search(r'JobBatchName == "([^"]*)"', " ".join(arguments))
    found = []
    for job in jobs():
        if (numbers and str(job["id"]) not in numbers) or (wanted and job["name"] != wanted.group(1)):
            continue
        for index, element, code in elements(job):
            ad = {"ClusterId": job["id"], "ProcId": index - 1, "JobBatchName": job["name"], "JobStatus": 2, "RemoteHost": "slot1_1@fake1"}
            if code is not None:
                ad["JobStatus"] = 3 if element["cancelled"] else 4
                ad["ExitCode"] = code
            if (code is not None) == over:
                found.append(ad)
    if found:
        print("[\n" + "\n,\n".join(json.dumps(ad, indent=2) for ad in found) + "\n]")


def condor_q(arguments):
    ads(arguments, over=False)


def condor_history(arguments):
    ads(arguments, over=True)


def condor_rm(arguments):
    for word in arguments:
        cluster, _, process = word.partition(".")
        for job in jobs():
            if str(job["id"]) == cluster:
                for index, _, _ in elements(job):
                    if process in ("", str(index - 1)):
                        cancel(job, index)
        print("All jobs in cluster {} have been marked for removal".format(cluster) if not process else "Job {} marked for removal".format(word))


# OpenPBS


def pbs_id(job, index=None):
    if not job["array"]:
        return "{}.pbs1".format(job["id"])
    return "{}[{}].pbs1".format(job["id"], "" if index is None else index)


def qsub(arguments):
    text = open(arguments[0]).read()
    lines = directives(text, "#PBS")
    if option(lines, "-q") == "nope":
        fail(170, "qsub: Unknown queue")
    spelled = option(lines, "-J")
    limits = re.match(r"1-(\d+)$", spelled) if spelled else None
    if spelled and (limits is None or int(limits.group(1)) < 2):
        fail(2, "qsub: illegal -J value\nusage: qsub [-a date_time] [-A account_string] [-c interval]")

    def environment(job, index):
        if limits:
            return {"PBS_JOBID": "{}[{}].pbs1".format(job, index), "PBS_ARRAY_INDEX": str(index), "PBS_ARRAY_ID": "{}[].pbs1".format(job)}
        return {"PBS_JOBID": "{}.pbs1".format(job)}

    n = int(limits.group(1)) if limits else 1
    job = submit(
        option(lines, "-N"), range(1, n + 1), limits is not None, lambda job, index: ["/bin/bash", os.path.abspath(arguments[0])],
        environment, os.path.expanduser("~"),
    )
    print("{}{}.pbs1".format(job, "[]" if limits else ""))


def wrapped(line):
    """As qstat breaks long lines: at 80 columns, with a tab."""
    parts = [line[:79]] + [line[at:at + 71] for at in range(79, len(line), 71)]
    return "\n\t".join(parts)


def qstat(arguments):
    if arguments == ["--version"]:
        print("pbs_version = 23.06.06")
        return
    code = 0
    for word in [word for word in arguments if not word.startswith("-")]:
        job = next((job for job in jobs() if pbs_id(job) == word), None)
        if job is None:
            sys.stderr.write("qstat: Unknown Job Id {}\n".format(word))
            code = 153
            continue
        if "-x" not in arguments and all(end is not None for _, _, end in elements(job)):
            sys.stderr.write("qstat: {} Job has finished, use -x or -H to obtain historical job information\n".format(word))
            code = 35
            continue
        if job["array"]:
            print("Job Id: {}\n    Job_Name = {}\n    job_state = B\n    array = True\n".format(word, job["name"]))
        for index, element, end in elements(job):
            print("Job Id: {}\n    Job_Name = {}".format(pbs_id(job, index), job["name"]))
            print("    job_state = {}".format("R" if end is None else "X" if job["array"] else "F"))
            if end is not None:
                print("    Exit_status = {}\n    substate = {}".format(271 if element["cancelled"] else end, 91 if element["cancelled"] else 92))
            print(wrapped("    Variable_List = PBS_O_HOME=/home/ada,PBS_O_LANG=C.UTF-8,QUOTE=\"it = that\",PBS_O_WORKDIR=/home/ada/work") + "\n")
    sys.exit(code)


def qdel(arguments):
    code = 0
    for word in arguments:
        spelled = re.match(r"(\d+)(?:\[(\d*)\])?\.pbs1$", word)
        job = next((job for job in jobs() if spelled and str(job["id"]) == spelled.group(1)), None)
        if job is None:
            sys.stderr.write("qdel: Unknown Job Id {}\n".format(word))
            code = 153
            continue
        for index, _, _ in elements(job):
            if spelled.group(2) in (None, "", str(index)):
                cancel(job, index)
    sys.exit(code)


def qselect(arguments):
    wanted = arguments[arguments.index("-N") + 1]
    for job in jobs():
        if job["name"] == wanted:
            print(pbs_id(job))


globals()[sys.argv[1]](sys.argv[2:])
