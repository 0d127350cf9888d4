"""Runs the console sessions of a Markdown page as a reader would, and compares what they print with the page.

A block ```console has commands (`$ …`) and their output; `> ` continues a command. A command in a comment (`<!-- $ … -->`) runs, too,
and its output is not compared: it waits for what a reader would wait for. A block of another language whose first line is
a comment with a file name (`# grid.py`) is written to that file. With UPDATE=1 in the environment the page gets the new output.
"""
import os
import pathlib
import re
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
HOME, HOST = "/home/ada", "pc"
MARK = "=== end of command "
# Columns of tables that differ from run to run.
VARYING = {"ENGINE", "TIME", "COMPLETED", "SUBMITTED", "SINCE", "PID", "UP"}


class Step:
    """A file to write, or a command with its output on the page (its lines from `first` to `last`)."""

    def __init__(self, file=None, text="", command=None, first=0, last=0):
        self.file, self.text, self.command, self.first, self.last = file, text, command, first, last


def steps_of(text):
    steps, lines, at = [], text.split("\n"), 0
    while at < len(lines):
        fence = re.match(r"( *)```(\w+)$", lines[at])
        hidden = re.match(r"<!-- \$ (.*) -->$", lines[at])
        if hidden:
            steps.append(Step(command=hidden.group(1)))
        at += 1
        if not fence:
            continue
        begin = at
        while lines[at].strip() != "```":
            at += 1
        block = [line[len(fence.group(1)):] for line in lines[begin:at]]
        if fence.group(2) == "console":
            steps += commands_of(block, begin)
        else:
            named = re.match(r"# ([\w./~-]+\.\w+)$", block[0])
            if named:
                steps.append(Step(file=named.group(1), text="\n".join(block) + "\n"))
    return steps


def commands_of(block, begin):
    steps = []
    for number, line in enumerate(block, begin):
        if line.startswith("$ "):
            steps.append(Step(command=line[2:], first=number + 1, last=number + 1))
        elif line.startswith("> ") and steps[-1].last == steps[-1].first:
            steps[-1].command += "\n" + line[2:]
            steps[-1].first = steps[-1].last = number + 1
        else:
            steps[-1].text += line + "\n"
            steps[-1].last = number + 1
    return steps


def script_of(steps):
    """One shell runs all, so that `cd` and `export` count for what follows; a failure ends it, if the next command does not ask for it."""
    lines = []
    for number, step in enumerate(steps):
        if step.file:
            path = step.file.replace("~/.ipython", "$IPYTHONDIR").replace("~", "$HOME")
            lines.append('mkdir -p "$(dirname "{0}")"; cat > "{0}" <<\'END OF FILE\'\n{1}END OF FILE'.format(path, step.text))
            continue
        lines.append(step.command)
        following = steps[number + 1].command if number + 1 < len(steps) else ""
        lines.append('code=$?; echo; echo "{}{} $code"'.format(MARK, number))
        if following and following.startswith("echo $?"):
            lines.append("(exit $code)")
        else:
            lines.append('[ "$code" = 0 ] || exit 1')
    return "\n".join(lines) + "\n"


def shown(text, replaced):
    """As the page shows it: without this machine's names."""
    for own, instead in replaced:
        text = text.replace(own, instead)
    return re.sub(r"\b{}\b".format(re.escape(socket.gethostname())), HOST, text)


def names_of_this_machine(home):
    """What `shown` replaces."""
    return [
        (str(home / "ipython"), HOME + "/.ipython"),
        (str(home), HOME),
        (os.path.realpath(str(home / "bin" / "pcluster")), HOME + "/.local/bin/pcluster"),
        (sys.base_prefix, "/usr"),
    ]


def compared(text):
    """Without what differs from run to run."""
    lines, columns = [], []
    for line in text.splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if len(cells) > 2 and all(re.fullmatch(r"[A-Z ]+", cell) for cell in cells):
            columns = cells
        elif len(cells) == len(columns):
            cells = ["…" if column in VARYING else cell for column, cell in zip(columns, cells)]
        line = "  ".join(cells)
        line = re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.\d+)?)?Z?", "DATE", line)
        line = re.sub(r"\b\d+(\.\d+)? ?(µs|ms|s|min|m|h)\b|just now", "TIME", line)
        line = re.sub(r"\bTIME( ago)?\b", "TIME", line)
        line = re.sub(r"(process|port|job|slurm) \d+(\.\d+)?|(engines-)\d+", r"\1\3N", line)
        line = re.sub(r"failed on \d+|engine( +)\d+ on", "engine N", line)
        line = re.sub(r"\d+/\d+ cpus, \S+/\S+", "NODE", line)
        line = re.sub(r"peak \S+", "peak SIZE", line)
        lines.append(line)
    return "\n".join(lines).strip()


def run_page(page, shell, replaced, keep_running=False):
    """Runs all of `page`. `shell` runs a script and gives back what it printed; `replaced` are pairs of this machine's names and the page's."""
    path = ROOT / page
    text = path.read_text()
    steps = steps_of(text)
    commands = [step for step in steps if step.command]
    assert len(commands) > 1, "{} has no commands".format(page)
    printed = shell(script_of(steps))
    outputs, rest = {}, printed
    for number, step in enumerate(steps):
        if step.file:
            continue
        output, end, rest = rest.partition("\n{}{} ".format(MARK, number))
        assert end, "{}: `{}` failed:\n{}\nof all that was printed:\n{}".format(page, step.command, output, printed)
        code, _, rest = rest.partition("\n")
        if step.first:
            outputs[number] = shown(output, replaced).strip("\n")
    if os.environ.get("UPDATE"):
        lines = text.split("\n")
        for number in sorted(outputs, reverse=True):
            step = steps[number]
            if compared(step.text) != compared(outputs[number]):
                lines[step.first:step.last] = outputs[number].split("\n") if outputs[number] else []
        path.write_text("\n".join(lines))
        return
    for number, output in outputs.items():
        step = steps[number]
        assert compared(output) == compared(step.text), "{}: `{}` (UPDATE=1 writes the new output to the page)".format(page, step.command)


def environment_for(home, pcluster, python):
    """Of someone who has just logged in: this pcluster and this Python, and nothing configured."""
    home = pathlib.Path(home)
    (home / "bin").mkdir()
    (home / "bin" / "pcluster").symlink_to(pcluster)
    for name in ("python", "python3"):
        script = home / "bin" / name
        script.write_text('#!/bin/sh\nexec "{}" "$@"\n'.format(python))
        script.chmod(0o755)
    return {
        "HOME": str(home),
        "IPYTHONDIR": str(home / "ipython"),
        "PATH": "{}/bin:{}".format(home, os.environ["PATH"]),
        "LANG": "C.UTF-8",
        "USER": "ada",
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
    }


def bash(home, environment, timeout=110):
    """A `shell` for `run_page`."""

    def run(script):
        done = subprocess.run(
            ["bash", "-c", script],
            stdin=subprocess.DEVNULL,
            cwd=str(home),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            timeout=timeout,
        )
        return done.stdout

    return run
