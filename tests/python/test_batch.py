"""Tests of clusters on a real batch system. PCLUSTER_TEST_BATCH=slurm:/its/directory selects the system and its directory (see
ci/batch/). Without it these tests are not collected."""
import datetime
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest

from conftest import REPOSITORY, Cluster, pcluster_binary, wait_until

sys.path.insert(0, str(REPOSITORY / "tests"))
import guide_pages  # noqa: E402

SYSTEM, DIRECTORY = os.environ["PCLUSTER_TEST_BATCH"].split(":", 1)
FUNCTIONS = '''
import os, time

def size(path):
    with open(path) as file:
        return len(file.read())

def slow(number):
    time.sleep(0.3)
    return number

def slower(number):
    time.sleep(2)
    return number

def held(number):
    while not os.path.exists("go"):
        time.sleep(0.05)
    return number

def job(number):
    return os.environ.get("PCLUSTER_JOB", "")
'''
# Number of jobs that a system of ci/batch/ can run at the same time.
SLOTS = 16


def environment_of(file):
    """The environment after sourcing the file."""
    done = subprocess.run(
        ["bash", "-c", '. "$1" && exec env -0', "bash", file], stdout=subprocess.PIPE, check=True, timeout=60
    )
    pairs = [entry.split("=", 1) for entry in done.stdout.decode().split("\0") if "=" in entry]
    return dict(pairs)


def output_of(*words):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=60)
    return done.stdout


class Slurm:
    launcher = "slurm"
    environment = "env.sh"
    # Slurm's time limits are in whole minutes.
    walltime_s = 60
    for_warnings = ()

    def queue(self):
        return output_of("squeue", "--noheader", "--array", "--format=%i %j %T").splitlines()

    def submit_a_strangers_job(self, *options):
        words = ["sbatch", "--parsable", "--job-name=stranger", "--output=/dev/null", *options, "--wrap", "sleep 600"]
        return output_of(*words).strip()

    def held(self):
        return ["--set", 'launchers.{}.directives=["{}"]'.format(self.launcher, "-h" if self.launcher == "pbs" else "--hold")]

    def hold(self, job, element):
        output_of("scontrol", "hold", "{}_{}".format(job, element))

    def release(self, job, element):
        output_of("scontrol", "release", "{}_{}".format(job, element))

    def suspend(self, job, element):
        output_of("scontrol", "suspend", "{}_{}".format(job, element))

    def resume(self, job, element):
        output_of("scontrol", "resume", "{}_{}".format(job, element))

    def requeue(self, job, element):
        output_of("scontrol", "requeue", "{}_{}".format(job, element))

    def begin_again(self, job):
        """Shortens Slurm's delay of two minutes for requeued jobs, which starts some time after the job is pending. Must be repeated until
        the job runs. Not immediately: a start within the second of its end is rejected (\"Job credential revoked\")."""
        lines = output_of("squeue", "--noheader", "--array", "--jobs=" + job, "--format=%i %S %r").splitlines()
        for name, begins, reason in (line.split(maxsplit=2) for line in lines):
            if reason == "BeginTime" and begins != "N/A" and begins > (datetime.datetime.now() + datetime.timedelta(seconds=10)).isoformat():
                output_of("scontrol", "update", "jobid=" + name, "starttime=now+3")

    def cancel(self, job):
        output_of("scancel", job)

    def warn(self, job):
        output_of("scancel", "--full", "--signal=USR2", job)

    def take_a_node_away(self):
        output_of("scontrol", "update", "nodename=n1", "state=down", "reason=test")

    def bring_it_back(self):
        output_of("scontrol", "update", "nodename=n1", "state=resume")

        def is_back():
            return output_of("sinfo", "--noheader", "--nodes=n1", "--format=%t").split()[0] in ("idle", "mix")

        wait_until("the node to be back", is_back)


class Pbs(Slurm):
    """Torque's commands as a front end to Slurm."""

    launcher = "pbs"
    environment = "torque-env.sh"
    walltime_s = None


class Sge:
    launcher = "sge"
    environment = "env.sh"
    walltime_s = 24
    for_warnings = ("--set", 'launchers.sge.directives=["-notify"]')

    def held(self):
        return ["--set", 'launchers.sge.directives=["-h"]']

    def queue(self):
        lines = output_of("qstat", "-u", "*").splitlines()
        return [line for line in lines if re.match(r"\s*\d+ ", line)]

    def submit_a_strangers_job(self):
        done = output_of("qsub", "-terse", "-N", "stranger", "-b", "y", "-o", "/dev/null", "-j", "y", "sleep", "600")
        return done.strip().splitlines()[-1]

    def cancel(self, job):
        output_of("qdel", job)

    def hold(self, job, element):
        output_of("qhold", "{}.{}".format(job, element))

    def release(self, job, element):
        output_of("qrls", "{}.{}".format(job, element))

    def warn(self, job):
        # SIGUSR2 first, then SIGKILL after the queue's notify time of a minute.
        self.cancel(job)

    def link(self, state):
        prefix = pathlib.Path(DIRECTORY, "net", "prefix").read_text().strip()
        subprocess.run(["ip", "link", "set", "v-{}2".format(prefix), state], check=True)

    def take_a_node_away(self):
        self.link("down")

    def bring_it_back(self):
        self.link("up")


SITE = {"slurm": Slurm, "pbs": Pbs, "sge": Sge}[SYSTEM]()
os.environ.update(environment_of(str(pathlib.Path(DIRECTORY, SITE.environment))))


class OnSite(Cluster):
    """A cluster with engines of the batch system, with a function file and inputs in its folder."""

    def __init__(self, *arguments):
        fast = ["--set", "launcher.poll_interval_ms=1000"]
        super().__init__("--launcher", SITE.launcher, *fast, *arguments)
        self.functions = self.folder / "functions.py"
        self.functions.write_text(FUNCTIONS)

    def map(self, function, inputs, *arguments):
        path = self.folder / "inputs.txt"
        path.write_text("".join("{}\n".format(line) for line in inputs))
        words = ["map", "{}:{}".format(self.functions, function), str(path), *arguments]
        return [json.loads(line) for line in self.run(*words).splitlines()]

    def start_map(self, function, count):
        self.run("map", "{}:{}".format(self.functions, function), "--range", "0..{}".format(count), "--detach")

    def tasks(self):
        return json.loads(self.run("results", "1", "--limit", "0", "--json"))["tasks"]

    def finished(self):
        return sum(task["state"] == "ok" for task in self.tasks())

    def listed(self):
        (cluster,) = json.loads(self.run("list", "--json"))["clusters"]
        return cluster

    def state(self):
        return json.loads((self.ipython_dir / "profile_default" / "pid" / "pcluster.json").read_text())

    def processes(self):
        """Processes of this cluster on all simulated hosts of this machine."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and str(self.folder).encode() in (entry / "cmdline").read_bytes():
                    if int(entry.name) != self.guard.pid:
                        found.append(int(entry.name))
            except OSError:
                continue
        return found

    def logs(self):
        folder = self.ipython_dir / "profile_default" / "log"
        return "".join(path.read_text() for path in folder.glob("engines*.log"))


def nothing_is_left(cluster):
    wait_until("the queue to be empty: {}".format(SITE.queue()), lambda: not SITE.queue())
    wait_until("processes to end", lambda: not cluster.processes())


@pytest.fixture
def on_site():
    """Starts clusters; removes jobs that a failed test leaves in the queue."""
    clusters = []

    def start(*arguments):
        clusters.append(OnSite(*arguments))
        return clusters[-1]

    yield start
    for cluster in clusters:
        cluster_state = cluster.ipython_dir / "profile_default" / "pid" / "pcluster.json"
        if cluster_state.exists():
            subprocess.run([pcluster_binary(), "stop", "--all"], env=cluster.environment, timeout=120, check=False)
        cluster.end()
    for line in SITE.queue():
        SITE.cancel(line.split()[0].split("_")[0])
    wait_until("the queue to be empty", lambda: not SITE.queue())


def failed_start(on_site_arguments):
    """The error of a start that must fail."""
    with pytest.raises(AssertionError) as failure:
        OnSite(*on_site_arguments)
    return str(failure.value)


def test_fifteen_engines_map_over_files_and_are_stopped(on_site):
    cluster = on_site("-n", "15")
    listed = cluster.listed()
    assert (listed["state"], listed["launcher"], listed["engines_registered"]) == ("running", SITE.launcher, 15)
    (launch,) = listed["engines"]
    (job,) = launch["jobs"]
    assert len(job["elements"]) == 15, "one submission"
    assert pathlib.Path(job["script"]).stat().st_mode & 0o077 == 0
    files = []
    for number in range(45):
        path = cluster.folder / "file {}".format(number)
        path.write_text("x" * number)
        files.append(str(path))
    assert cluster.map("size", files) == list(range(45))
    tasks = cluster.tasks()
    assert [task["state"] for task in tasks] == ["ok"] * 45
    engines = json.loads(cluster.run("engines", "--json"))["engines"]
    assert len({(engine["host"], engine["pid"]) for engine in engines}) == 15
    jobs = set(cluster.map("job", range(30)))
    assert len(jobs) == 1 and re.match(r"\d+", jobs.pop())[0] == re.match(r"\d+", job["id"])[0]
    cluster.run("stop")
    nothing_is_left(cluster)
    assert cluster.finished() == 45, "its records are kept"


def test_engines_beyond_the_slots_are_queued_listed_scaled_and_stopped(on_site):
    cluster = on_site("-n", str(SLOTS + 4), "--wait", str(SLOTS))
    queued = wait_until("queued engines", lambda: [c for c in [cluster.listed()] if c["engines_queued"] == 4])
    assert queued[0]["engines_registered"] == SLOTS
    if SITE.launcher == "slurm":
        assert "4 queued: Resources" in queued[0]["engines"][0]["states"]
    # Queued engines are removed first.
    output = json.loads(cluster.run("scale", str(SLOTS - 6), "--json"))
    assert (output["cancelled"], len(output["stopping"]), output["left"]) == (4, 6, SLOTS - 6)
    wait_until("six to leave", lambda: len(json.loads(cluster.run("engines", "--json"))["engines"]) == SLOTS - 6)
    wait_until("their jobs to end", lambda: len(SITE.queue()) == SLOTS - 6)
    output = json.loads(cluster.run("scale", str(SLOTS - 2), "--json"))
    assert output == dict(output, added=4, engines=SLOTS - 2)
    # Exceed the slots again, and stop while some engines are queued.
    cluster.run("engines", "add", "6", "--wait", "none")
    wait_until("queued engines", lambda: cluster.listed()["engines_queued"] > 0)
    cluster.run("stop")
    nothing_is_left(cluster)


def test_a_removed_engine_finishes_its_task(on_site):
    cluster = on_site("-n", "2")
    cluster.start_map("held", 2)
    wait_until("both to be busy", lambda: sum(e["state"] == "busy" for e in engines(cluster)) == 2)
    output = json.loads(cluster.run("engines", "remove", "1", "--json"))
    assert (len(output["stopping"]), output["busy"], output["left"]) == (1, 1, 1)
    (cluster.folder / "go").touch()
    cluster.run("wait")
    assert [(task["state"], task["attempts"]) for task in cluster.tasks()] == [("ok", 1)] * 2
    wait_until("it to leave", lambda: len(engines(cluster)) == 1)
    cluster.run("stop")
    nothing_is_left(cluster)


def jobs(cluster):
    return [job for launch in cluster.listed()["engines"] for job in launch["jobs"]]


def up(cluster):
    return [engine for engine in engines(cluster) if engine["state"] in ("idle", "busy")]


def walltime_monitor_log(cluster):
    return (cluster.ipython_dir / "profile_default" / "log" / "walltime-monitor.log").read_text()


def children_of(pid):
    return [int(child) for child in pathlib.Path("/proc/{0}/task/{0}/children".format(pid)).read_text().split()]


def engines(cluster):
    return json.loads(cluster.run("engines", "--json"))["engines"]


def test_losing_a_node_during_a_map(on_site):
    cluster = on_site("-n", "15", "--set", "controller.lease_ms=3000", "--set", "controller.heartbeat_interval_ms=500")
    cluster.start_map("slow", 150)
    wait_until("some tasks", lambda: cluster.finished() > 5)
    SITE.take_a_node_away()
    try:
        cluster.run("wait")
        tasks = cluster.tasks()
        assert [task["state"] for task in tasks] == ["ok"] * 150
        assert sorted(task["value"] for task in tasks) == list(range(150)), "each task ended once, with its value"
        assert len([e for e in engines(cluster) if e["state"] != "silent"]) < 15
    finally:
        SITE.bring_it_back()
    cluster.run("stop")
    nothing_is_left(cluster)


@pytest.mark.skipif(SITE.walltime_s is None, reason="not applicable: the same Slurm as without Torque's commands")
def test_walltime_during_a_map(on_site):
    cluster = on_site("-n", "2", "--walltime", "{}s".format(SITE.walltime_s), "--max-walltime-restarts", "3")
    (engine, _) = engines(cluster)
    assert engine["ends"] is not None
    (job,) = jobs(cluster)
    # It is restarted after its own end, and after that of the controller.
    state = cluster.state()
    for process in (state["walltime_monitor"]["process"], state["controller"]["processes"][0]):
        (child,) = children_of(process["pid"])
        os.kill(child, signal.SIGKILL)
    cluster.start_map("slower", SITE.walltime_s + 10)
    cluster.run("wait", timeout=240)
    tasks = cluster.tasks()
    assert [task["state"] for task in tasks] == ["ok"] * len(tasks)
    # Returned tasks do not count as attempts.
    assert max(task["attempts"] for task in tasks) == 1, "no task was interrupted"
    assert "the time of its job is nearly over" in cluster.logs()
    new = jobs(cluster)
    assert job["name"] not in [job["name"] for job in new], "all jobs were replaced"
    assert sum(len(job["elements"]) for job in new) == 2 and all(1 <= job["replaces"] <= 3 for job in new)
    listed = cluster.listed()
    assert (listed["engines_started"], listed["walltime_monitor"]["runs"]) == (2, True)
    assert listed["walltime_monitor"]["replaced"] % 2 == 0
    cluster.run("stop")
    nothing_is_left(cluster)
    on_record = cluster.listed()["jobs_on_record"]
    assert all(row["over"] for row in on_record)
    assert {row["replaces"] for row in on_record} == set(range(1 + max(job["replaces"] for job in new)))
    assert [row["state"].split(" (")[0] for row in on_record if row["name"] == job["name"]] == ["completed"] * 2


@pytest.mark.skipif(SITE.walltime_s is None, reason="not applicable: the same Slurm as without Torque's commands")
def test_walltime_without_restarts(on_site):
    if SITE.launcher == "slurm":
        pytest.skip("not applicable: takes another minute, and Grid Engine covers it")
    cluster = on_site("-n", "2", "--walltime", "{}s".format(SITE.walltime_s))
    cluster.start_map("slower", SITE.walltime_s + 10)
    wait_until("both to leave", lambda: not engines(cluster), 120)
    assert "the time of its job is nearly over" in cluster.logs()
    tasks = cluster.tasks()
    done = sum(task["state"] == "ok" for task in tasks)
    assert 0 < done < len(tasks)
    # Returned tasks do not count as attempts, and other engines run them.
    assert {task["state"] for task in tasks} <= {"ok", "ready"}
    cluster.run("engines", "add", "12", "--walltime", "10m")
    cluster.run("wait")
    tasks = cluster.tasks()
    assert [task["state"] for task in tasks] == ["ok"] * len(tasks)
    assert max(task["attempts"] for task in tasks) == 1, "no task was interrupted"
    cluster.run("stop")
    nothing_is_left(cluster)


@pytest.mark.skipif(SITE.launcher == "pbs", reason="not applicable: the same Slurm as without Torque's commands")
def test_a_warning_to_all_processes_of_a_job_ends_no_task(on_site):
    cluster = on_site("-n", "2", "--walltime", "10m", *SITE.for_warnings)
    cluster.start_map("held", 2)
    wait_until("both to be busy", lambda: sum(e["state"] == "busy" for e in engines(cluster)) == 2)
    ((job,),) = [launch["jobs"] for launch in cluster.listed()["engines"]]
    SITE.warn(job["id"])
    # The script's shell forwards the warning too. The running task gets the time left minus the time to stop it and to unregister: on
    # Slurm nearly the whole ten minutes, on Grid Engine the minute of `-notify`.
    wait_until("both to be leaving", lambda: cluster.logs().count("returning tasks and leaving") >= 2)
    given = [float(seconds) for seconds in re.findall(r"the running task has ([0-9.]+) s", cluster.logs())]
    assert all(300 < seconds < 600 if SITE.launcher == "slurm" else seconds == 48 for seconds in given), given
    (cluster.folder / "go").touch()
    cluster.run("wait")
    assert [(task["state"], task["attempts"]) for task in cluster.tasks()] == [("ok", 1)] * 2
    wait_until("both to be gone", lambda: not engines(cluster))
    cluster.run("stop")
    nothing_is_left(cluster)


@pytest.mark.skipif(SITE.launcher == "pbs", reason="not applicable: the same Slurm as without Torque's commands")
def test_held_suspended_and_requeued_jobs_are_shown_and_recover(on_site):
    cluster = on_site("-n", str(SLOTS + 1), "--wait", str(SLOTS))
    ((job,),) = [launch["jobs"] for launch in cluster.listed()["engines"]]

    def states():
        (job,) = jobs(cluster)
        return dict(job["elements"])

    waiting = wait_until("a queued engine", lambda: [e for e, state in states().items() if state == "queued"])[0]
    SITE.hold(job["id"], waiting)
    wait_until("it to be held", lambda: states()[waiting] == "held")
    assert "1 held" in cluster.listed()["engines"][0]["states"]
    explained = json.loads(cluster.run("explain", "--job", str(job["id"]), "--json"))
    assert {element["state"] for element in explained["elements"]} == {"running", "held"}, explained
    assert len(explained["engines"]) == SLOTS and {e["state"] for e in explained["engines"]} == {"idle"}, explained
    assert "held" in cluster.run("explain", "--job", str(job["id"]))
    SITE.release(job["id"], waiting)
    wait_until("it to be queued", lambda: states()[waiting] == "queued")
    if SITE.launcher == "sge":
        # It would warn with SIGUSR1 before suspending, like before its soft limit: the engine leaves.
        cluster.run("stop")
        return nothing_is_left(cluster)
    SITE.suspend(job["id"], 1)
    wait_until("one to be suspended", lambda: states()[1] == "suspended")
    assert cluster.listed()["engines"][0]["suspended"] == 1
    SITE.resume(job["id"], 1)
    wait_until("it to run again", lambda: states()[1] == "running")
    # All are idle: the suspended one reports again. (The queued one may be running now, in the free slot.)
    wait_until("all to report", lambda: len(up(cluster)) == len(engines(cluster)) >= SLOTS)
    # Free a slot for the requeued one: the queued one would take it.
    cluster.run("scale", str(SLOTS - 1))
    idle = next(engine for engine in engines(cluster) if engine["state"] == "idle")
    SITE.requeue(job["id"], int(idle["job"].rsplit(".", 1)[1]))

    def is_back():
        SITE.begin_again(job["id"])
        uuids = [engine["uuid"] for engine in up(cluster) if engine["job"] == idle["job"]]
        return uuids and uuids != [idle["uuid"]] and len(up(cluster)) == SLOTS - 1

    wait_until("the requeued engine to register with its job's number", is_back)
    cluster.run("stop")
    nothing_is_left(cluster)


@pytest.mark.skipif(SITE.launcher != "slurm", reason="not applicable: Grid Engine has no such states, and Torque's commands are before the same Slurm")
def test_a_lost_node_and_preemption_cost_no_engines(on_site):
    # Slurm itself requeues neither.
    options = ["--queue", "scavenge", "--max-walltime-restarts", "2", "--set", 'launchers.slurm.directives=["--no-requeue"]']
    cluster = on_site("-n", str(SLOTS), *options)
    SITE.take_a_node_away()
    try:
        wait_until("new jobs", lambda: [job["replaces"] for job in jobs(cluster)] == [0, 1])
    finally:
        SITE.bring_it_back()
    wait_until("all engines", lambda: len(up(cluster)) == SLOTS)
    assert "node failed" in walltime_monitor_log(cluster)
    stranger = SITE.submit_a_strangers_job("--partition=batch", "--ntasks=1", "--cpus-per-task=4")
    wait_until("new jobs", lambda: sum(len(job["elements"]) for job in jobs(cluster) if job["replaces"]) == 8, 90)
    assert "preempted" in walltime_monitor_log(cluster)
    assert cluster.listed()["engines_started"] == SLOTS
    SITE.cancel(stranger)
    wait_until("all engines", lambda: len(up(cluster)) == SLOTS)
    cluster.run("stop")
    nothing_is_left(cluster)
    assert {"node failed", "preempted", "stopped"} <= {row["state"].split(" (")[0] for row in cluster.listed()["jobs_on_record"]}


@pytest.mark.skipif(SITE.launcher != "slurm", reason="not applicable: specific to Slurm")
def test_a_preempted_job_that_slurm_requeues_keeps_its_id(on_site):
    cluster = on_site("-n", str(SLOTS), "--queue", "again", "--max-walltime-restarts", "1")
    (job,) = jobs(cluster)
    stranger = SITE.submit_a_strangers_job("--partition=batch", "--ntasks=1", "--cpus-per-task=4")
    wait_until("engines to make room", lambda: len(up(cluster)) == SLOTS - 4, 90)
    def waiting():
        return [state for _, state in jobs(cluster)[0]["elements"] if state in ("queued", "requeued")]

    wait_until("four to be in the queue again", lambda: len(waiting()) == 4)
    SITE.cancel(stranger)

    def are_back():
        SITE.begin_again(job["id"])
        return len(up(cluster)) == SLOTS

    wait_until("all engines", are_back)
    assert [(j["id"], j["replaces"]) for j in jobs(cluster)] == [(job["id"], 0)], "nothing was submitted"
    cluster.run("stop")
    nothing_is_left(cluster)


def test_an_unknown_queue(on_site):
    output = failed_start(["-n", "2", "--queue", "nope"])
    assert " ended with 5:" in output and "nope" in output or "artition" in output
    script = re.search(r"script: (.*\.sh)", output)[1]
    assert script.startswith("/") and "hint:" in output
    assert not SITE.queue()


@pytest.mark.skipif(SITE.launcher != "slurm", reason="not applicable: the same code for all")
def test_a_submission_without_an_answer_is_found_and_a_sites_banner_is_ignored(on_site, tmp_path, monkeypatch):
    real, wrapper = shutil.which("sbatch"), tmp_path / "sbatch"
    monkeypatch.setenv("PATH", "{}:{}".format(tmp_path, os.environ["PATH"]))
    for text in ('"{}" "$@" > /dev/null && exec sleep 600', 'echo "Welcome to node 7"; "{}" "$@" && echo "Have fun, 42"'):
        wrapper.write_text("#!/bin/sh\n" + text.format(real) + "\n")
        wrapper.chmod(0o755)
        cluster = on_site("-n", "1", "--set", "launcher.command_timeout_ms=5000")
        (job,) = jobs(cluster)
        (line,) = SITE.queue()
        assert line.split()[:2] == ["{}_1".format(job["id"]), job["name"]], "submitted once"
        cluster.run("stop")
        nothing_is_left(cluster)


def test_a_job_that_fails_immediately_is_detected_immediately(on_site):
    output = failed_start(["-n", "2", "--set", "launchers.{}.before=[\"echo no such module; exit 3\"]".format(SITE.launcher)])
    assert "engines exited before they registered" in output
    assert "no such module" in output, "the end of its log"
    wait_until("the queue to be empty", lambda: not SITE.queue())


def test_after_a_reboot_of_this_host_stop_ends_our_jobs_and_no_others(on_site):
    stranger = SITE.submit_a_strangers_job()
    cluster = on_site("-n", str(SLOTS + 2), "--wait", "4")
    state = cluster.state()
    (supervisor,) = state["controller"]["processes"]
    file = cluster.ipython_dir / "profile_default" / "security" / "ipcontroller-client.json"
    controller = json.loads(file.read_text())["pcluster"]
    # A stopped controller starts no other supervisor.
    os.kill(controller["pid"], signal.SIGSTOP)
    for pid in (supervisor["pid"], controller["pid"]):
        os.kill(pid, signal.SIGKILL)
    wait_until("the controller to be gone", lambda: cluster.listed()["state"] == "stale")
    assert cluster.listed()["engines_queued"] > 0
    cluster.run("stop")
    wait_until("only the stranger's job to be left", lambda: len(SITE.queue()) == 1)
    assert "stranger" in SITE.queue()[0]
    SITE.cancel(stranger)
    nothing_is_left(cluster)


def test_the_controller_may_run_as_a_job(on_site):
    cluster = on_site("-n", "3", "--controller-launcher", SITE.launcher)
    listed = cluster.listed()
    assert listed["state"] == "running" and len(listed["controller_launch"]["jobs"]) == 1
    assert listed["controller_host"] not in (None, "")
    assert cluster.map("slow", ["a", "b", "c"]) == ["a", "b", "c"]
    cluster.run("stop")
    nothing_is_left(cluster)



# Variables in a user's or a site's environment for Slurm's commands; each of them caused lost jobs or different requests.
OVERRIDING = {
    "SBATCH_ARRAY_INX": "1-9",
    "SBATCH_ERROR": "/nowhere/error",
    "SBATCH_INPUT": "/nowhere/input",
    "SBATCH_JOB_NAME": "another",
    "SBATCH_MEM_PER_CPU": "7000",
    "SBATCH_MEM_PER_NODE": "7000",
    "SBATCH_NO_REQUEUE": "1",
    "SBATCH_OPEN_MODE": "truncate",
    "SBATCH_OUTPUT": "/nowhere/output",
    "SBATCH_PARTITION": "short",
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_WAIT": "1",
    "SLURM_ARRAY_TASK_ID": "77",
    "SLURM_EXIT_ERROR": "0",
    "SLURM_JOB_ID": "4711",
    "SLURM_MEM_PER_CPU": "7000",
}
HIDING = {
    "SACCT_FORMAT": "JobName",
    "SCANCEL_INTERACTIVE": "1",
    "SCANCEL_NAME": "another",
    "SCANCEL_PARTITION": "short",
    "SCANCEL_STATE": "SUSPENDED",
    "SCANCEL_USER": "nobody",
    "SLURM_BITSTR_LEN": "8",
    "SLURM_CLUSTERS": "nowhere",
    "SLURM_TIME_FORMAT": "%a",
    "SQUEUE_ACCOUNT": "nobody",
    "SQUEUE_FORMAT": "%i",
    "SQUEUE_FORMAT2": "jobid",
    "SQUEUE_NAMES": "another",
    "SQUEUE_PARTITION": "short",
    "SQUEUE_QOS": "nobody",
    "SQUEUE_SORT": "zz",
    "SQUEUE_STATES": "SUSPENDED",
    "SQUEUE_USERS": "nobody",
}


@pytest.mark.skipif(SITE.launcher == "sge", reason="not applicable: Grid Engine's commands obey files, not variables")
def test_the_environment_does_not_override_requested_options(on_site):
    cluster = on_site("-n", "1")
    site = {"SBATCH_ACCOUNT": "physics", "SBATCH_COMMENT": "x", "SBATCH_EXPORT": "ALL"}
    cluster.environment.update(OVERRIDING, **site)
    requeue = ["--set", 'launchers.slurm.directives=["--requeue"]'] if SITE.launcher == "slurm" else []
    cluster.run("engines", "add", "2", "--queue", "batch", "--walltime", "10m", "--mem", "50M", "--cpus", "1", *requeue)
    (job,) = jobs(cluster)[1:]
    shown = output_of("scontrol", "show", "job", "{}_1".format(job["id"]))
    fields = dict(word.split("=", 1) for word in shown.split() if "=" in word)
    assert (fields["JobName"], fields["Partition"], fields["TimeLimit"]) == (job["name"], "batch", "00:10:00")
    assert (fields["MinMemoryNode"], fields["Account"]) == ("50M", "physics"), shown
    assert len(output_of("squeue", "--noheader", "--array", "--jobs=" + job["id"]).splitlines()) == 2
    assert "/nowhere/" not in shown
    if SITE.launcher == "slurm":
        assert (fields["Requeue"], "gpu" in shown) == ("1", False), shown
    cluster.run("engines", "add", "2", "--wait", "none", "--mem", "50M", *SITE.held())
    cluster.environment.update(HIDING)
    wait_until("queued engines to be detected", lambda: cluster.listed()["engines_queued"] == 2)
    cluster.run("scale", "2")
    cluster.run("stop")
    nothing_is_left(cluster)


@pytest.mark.skipif(SITE.launcher != "sge", reason="not applicable: Grid Engine's files")
def test_default_request_files_do_not_override_requested_options(on_site):
    cluster = on_site("-n", "1")
    overrides = ["-N another", "-q short.q", "-l h_rt=55", "-o /nowhere/output", "-j n", "-S /bin/false", "-t 1-9", "-b y", "-now y", "-C XX"]
    site = ["-l s_rt=500"]
    (cluster.folder / ".sge_request").write_text("\n".join(overrides + site) + "\n")
    cluster.run("engines", "add", "2", "--queue", "all.q", "--walltime", "10m")
    (job,) = jobs(cluster)[1:]
    shown = output_of("qstat", "-j", job["id"])
    fields = dict(line.split(":", 1) for line in shown.splitlines() if ":" in line)
    fields = {name: value.strip() for name, value in fields.items()}
    assert (fields["job_name"], fields["hard_queue_list"], fields["merge"]) == (job["name"], "all.q", "y")
    assert set(fields["hard resource_list"].split(",")) == {"h_rt=600", "s_rt=500"}
    assert fields["job-array tasks"] == "1-2:1" and "/nowhere/" not in fields["stdout_path_list"]
    defaults = pathlib.Path(os.environ["SGE_ROOT"], os.environ["SGE_CELL"], "common", "sge_qstat")
    defaults.write_text("-s z -q short.q\n")
    try:
        cluster.environment.update(SGE_LONG_QNAMES="3", SGE_SINGLE_LINE="1", LC_ALL="C.UTF-8")
        cluster.run("engines", "add", str(SLOTS), "--wait", "none")
        wait_until("queued engines to be detected", lambda: cluster.listed()["engines_queued"] == 3)
        cluster.run("stop")
    finally:
        defaults.unlink()
    nothing_is_left(cluster)


def failed_stop(cluster):
    done = subprocess.run(
        [pcluster_binary(), "stop"], env=cluster.environment, cwd=str(cluster.folder), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=120,
    )
    assert done.returncode != 0, done.stdout
    return done.stdout


@pytest.mark.skipif(SITE.launcher == "pbs", reason="not applicable: the same Slurm as without Torque's commands")
def test_a_stop_that_leaves_jobs_names_them_and_can_be_repeated(on_site, tmp_path):
    cluster = on_site("-n", "1")
    cluster.run("engines", "add", "3", "--wait", "none", *SITE.held())
    (_, job) = jobs(cluster)
    before = cluster.environment["PATH"]
    wrapper = tmp_path / ("scancel" if SITE.launcher == "slurm" else "qdel")
    wrapper.write_text("#!/bin/sh\nexit 0\n")
    wrapper.chmod(0o755)
    cluster.environment["PATH"] = "{}:{}".format(tmp_path, before)
    message = failed_stop(cluster)
    assert re.search(r"jobs of .* still exist", message), message
    assert re.search(r"job {}, elements 1-3: held".format(job["id"]), message) and "hint:" in message, message
    assert SITE.queue()
    cluster.environment["PATH"] = before
    cluster.run("stop")
    nothing_is_left(cluster)


@pytest.mark.skipif(SITE.launcher != "slurm", reason="not applicable: the same code for all")
def test_a_renamed_job_is_reported_and_not_cancelled(on_site):
    cluster = on_site("-n", "1")
    (job,) = jobs(cluster)
    output_of("scontrol", "update", "JobId=" + job["id"], "JobName=renamed")
    wait_until("it to be reported", lambda: "is named renamed" in json.dumps(cluster.listed()))
    # Its engine leaves with the controller: use another, queued job to test cancelling.
    cluster.run("engines", "add", "1", "--wait", "none", *SITE.held())
    (_, waiting) = jobs(cluster)
    output_of("scontrol", "update", "JobId=" + waiting["id"], "JobName=renamed")
    wait_until("both to be reported", lambda: json.dumps(cluster.listed()).count("is named renamed") == 2)
    message = failed_stop(cluster)
    assert "job {} is named renamed".format(waiting["id"]) in message and "scancel " + waiting["id"] in message, message
    assert any(line.startswith(waiting["id"]) for line in SITE.queue())
    SITE.cancel(waiting["id"])
    cluster.run("stop")
    nothing_is_left(cluster)


def test_setup_lines_run_in_bash_and_a_failing_one_fails_the_start(on_site, tmp_path):
    output = failed_start(["-n", "2", "--set", "launchers.{}.before=[\"module load nosuch/1.2\"]".format(SITE.launcher)])
    assert "a setup line failed (exit code 127), line " in output and ": module load nosuch/1.2" in output, output
    wait_until("the queue to be empty", lambda: not SITE.queue())
    # Like activating an environment: relative to the working directory, with `source`.
    (tmp_path / "env.sh").write_text("false\nexport FROM_SETUP=here\n")
    before = json.dumps(["cd {}".format(tmp_path), "source ./env.sh"])
    cluster = on_site("-n", "1", "--set", "launchers.{}.before={}".format(SITE.launcher, before))
    assert "here" in cluster.run("exec", "import os; print(os.environ['FROM_SETUP'])")
    cluster.run("stop")
    nothing_is_left(cluster)


# Replaces conda, which is not installed on test machines: environments are venvs, and `conda activate` sets and prints the same as
# that of conda 26.7.
CONDA = """
conda() {
    case $1 in
    create) python3 -m venv --without-pip "$HOME/miniconda3/envs/sim" ;;
    activate)
        if [ ! -d "$HOME/miniconda3/envs/$2" ]; then
            echo "EnvironmentNameNotFound: Could not find conda environment: $2"
            echo 'You can list all discoverable environments with `conda info --envs`.'
            return 1
        fi
        export CONDA_DEFAULT_ENV=$2 CONDA_PREFIX=$HOME/miniconda3/envs/$2
        PATH=$CONDA_PREFIX/bin:$PATH ;;
    esac
}
"""


@pytest.mark.skipif(SYSTEM != "slurm", reason="not applicable: the guide is for Slurm")
def test_the_guide_to_conda_shows_what_its_commands_print(guarded_home):
    script = guarded_home / "miniconda3" / "etc" / "profile.d" / "conda.sh"
    script.parent.mkdir(parents=True)
    script.write_text(CONDA)
    environment = guide_pages.environment_for(guarded_home, pcluster_binary(), sys.executable)
    environment.update(environment_of(os.path.join(DIRECTORY, "env.sh")), HOME=str(guarded_home))
    environment["PATH"] = "{}/bin:{}".format(guarded_home, environment["PATH"])
    environment["IPYTHONDIR"] = str(guarded_home / "ipython")
    replaced = guide_pages.names_of_this_machine(guarded_home)
    guide_pages.run_page("docs/how-to/conda-slurm.md", guide_pages.bash(guarded_home, environment, 240), replaced)


def node(cluster):
    (node,) = json.loads(cluster.run("engines", "--json"))["nodes"]
    return node


@pytest.mark.skipif(SITE.launcher != "slurm", reason="not applicable: its GPUs and variables are Slurm's")
def test_tasks_share_the_gpus_and_processors_of_their_job(on_site):
    four = ["--set", "launchers.slurm.engines_per_job=4", "--set", 'launchers.slurm.directives=["--gres=gpu:2"]']
    cluster = on_site("-n", "4", *four, "--resource", "cpus=4")
    assert (node(cluster)["cpus"], [gpu["name"] for gpu in node(cluster)["gpus"]]) == (4, ["0", "1"])
    (cluster.folder / "gpus.py").write_text(
        "import os, time\n"
        "def held(x):\n"
        "    start = time.time(); time.sleep(0.3)\n"
        "    return [os.environ.get('CUDA_VISIBLE_DEVICES'), start, time.time()]\n"
        "def threads(x):\n"
        "    return [os.environ.get(name) for name in ('OMP_NUM_THREADS', 'SLURM_NTASKS')]\n"
    )
    lines = cluster.run("map", str(cluster.folder / "gpus.py") + ":held", "--range", "0..6", "--gpus", "1")
    held = [json.loads(line) for line in lines.splitlines()]
    assert {gpu for gpu, _, _ in held} == {"0", "1"}
    for gpu, start, end in held:
        assert [other for other in held if other[0] == gpu and other[1] < end and start < other[2]] == [[gpu, start, end]]
    both = cluster.run("map", str(cluster.folder / "gpus.py") + ":held", "--range", "0..2", "--gpus", "2")
    assert [json.loads(line)[0] for line in both.splitlines()] == ["0,1"] * 2
    part = cluster.run("map", str(cluster.folder / "gpus.py") + ":threads", "--range", "0..1", "--cpus", "3")
    assert json.loads(part) == ["3", "3"]
    default = cluster.run("map", str(cluster.folder / "gpus.py") + ":threads", "--range", "0..1")
    assert json.loads(default)[0] == "1", "four engines on four processors"
    cluster.run("stop")
    nothing_is_left(cluster)


@pytest.mark.skipif(SITE.launcher != "slurm", reason="not applicable: the variables are Slurm's")
@pytest.mark.parametrize("mpirun", ["mpirun.openmpi", "mpirun.mpich"])
def test_mpirun_in_a_task_starts_the_ranks_of_the_task(on_site, mpirun):
    if shutil.which(mpirun) is None:
        pytest.skip("{} is not installed (apt-get install openmpi-bin mpich)".format(mpirun))
    cluster = on_site("-n", "2", "--set", "launchers.slurm.engines_per_job=2", "--set", "launchers.slurm.cpus=2", "--resource", "cpus=4")
    root = ["--env", "OMPI_ALLOW_RUN_AS_ROOT=1", "--env", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"]
    rank = "echo rank ${OMPI_COMM_WORLD_RANK:-$PMI_RANK} of ${OMPI_COMM_WORLD_SIZE:-$PMI_SIZE}"
    command = "{} sh -c '{}' # {{}}".format(mpirun, rank)
    for cpus in (1, 3):
        options = ["--mem", "100M", "--cpus", str(cpus)]
        output = cluster.run("map", "--range", "0..2", *options, *root, "--", "sh", "-c", command)
        ranks = sorted("rank {} of {}".format(n, cpus) for n in range(cpus))
        assert sorted(output.splitlines()) == sorted(ranks * 2), (mpirun, cpus, output)
    cluster.run("stop")
    nothing_is_left(cluster)


ELASTIC = ["--set", "elastic.work_per_engine=10s", "--set", "elastic.interval=1s"]


def test_an_elastic_cluster_has_engines_while_there_is_work(on_site):
    cluster = on_site("--max", "3", "--idle", "3s", *ELASTIC)
    assert SITE.queue() == [], "no work, no job"
    # Until ten have ended, each task is assumed to take a minute.
    assert cluster.map("slow", range(60)) == [str(number) for number in range(60)]
    wait_until("its engines to leave", lambda: not engines(cluster), timeout_s=90)
    wait_until("the queue to be empty", lambda: not SITE.queue(), timeout_s=90)
    assert [task["attempts"] for task in cluster.tasks()] == [1] * 60, "no task was interrupted"
    assert cluster.run("map", "{}:slow".format(cluster.functions), "--range", "7..8") == "7\n", "they come again"
    log = cluster.run("elastic", "log")
    assert "start 3 engines" in log and "retire" in log, log
    cluster.run("stop")
    nothing_is_left(cluster)


def test_elastic_jobs_are_found_after_a_crash_and_submitted_once(on_site):
    options = ["--max", "2", *ELASTIC, *SITE.held()]
    cluster = on_site(*options)
    cluster.start_map("slow", 40)
    wait_until("two held jobs", lambda: len(SITE.queue()) in (1, 2))
    wait_until("them to be on record", lambda: len(cluster.listed()["engines"]) > 0)
    queue = SITE.queue()

    def all_are_killed():
        pids = cluster.processes()
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return not pids

    wait_until("supervisors and what they start to be gone", all_are_killed)
    cluster.run("start", "--launcher", SITE.launcher, *options)
    wait_until("decisions", lambda: "why not more" in cluster.run("elastic"))
    assert SITE.queue() == queue, "none is submitted twice"
    cluster.run("stop")
    nothing_is_left(cluster)
