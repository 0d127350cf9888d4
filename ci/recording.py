#!/usr/bin/env python3
"""Records a terminal session of pcluster as an animated SVG: `ci/recording.py [OUTPUT]`, by default docs/images/terminal.svg.

The session is real: a shell runs the commands below in a terminal of its own, in a temporary home directory. Only pauses are shortened.
PCLUSTER_BIN names the program (default: target/debug/pcluster).
"""
import html
import os
import pathlib
import pty
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
COLUMNS, PROMPT = 92, "$ "
PROGRAM = '''"""Primes in blocks of 10,000 numbers."""

def count(block):
    numbers = range(block * 10_000, (block + 1) * 10_000)
    return sum(n > 1 and all(n % d for d in range(2, int(n**0.5) + 1)) for n in numbers)

def add(a, b):
    return a + b
'''
COMMANDS = [
    "cat primes.py",
    "pcluster start -n 4",
    "pcluster map primes.py:count --range 0..100 --reduce primes.py:add",
    "pcluster results",
    "pcluster results 1.42",
    "pcluster map --glob '*.py' -- wc -l {}",
    "pcluster stop",
]
COLOURS = {"1": "bold", "2": "dim", "31": "red", "32": "green", "33": "yellow", "34": "blue", "36": "cyan"}


class Screen:
    """A minimal terminal emulator, for programs that print lines and a progress bar."""

    def __init__(self):
        self.lines, self.row, self.column, self.style = [[]], 0, 0, ()

    def write(self, text):
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|[^\x1b]|\x1b", text):
            if part.startswith("\x1b["):
                self.control(part[-1], part[2:-1])
            elif part == "\n":
                self.row, self.column = self.row + 1, 0
                if self.row == len(self.lines):
                    self.lines.append([])
            elif part == "\r":
                self.column = 0
            elif part >= " ":
                line = self.lines[self.row]
                line.extend([(" ", ())] * (self.column + 1 - len(line)))
                line[self.column] = (part, self.style)
                self.column += 1

    def control(self, final, parameters):
        number = int(parameters) if parameters.isdigit() else 1
        if final == "m":
            codes = [code for code in parameters.split(";") if code in COLOURS]
            self.style = self.style + tuple(codes) if codes else ()
        elif final == "A":
            self.row = max(0, self.row - number)
        elif final == "K":
            line = self.lines[self.row]
            del line[0 if parameters == "2" else self.column:]
        elif final == "J":
            del self.lines[self.row][self.column:]
            del self.lines[self.row + 1:]


def run(command, home, environment):
    """Runs the command; returns its terminal output and its duration."""
    begun = time.monotonic()
    master, slave = pty.openpty()
    subprocess.run(["stty", "cols", str(COLUMNS), "rows", "40"], stdin=slave, check=True)
    process = subprocess.Popen(["bash", "-c", command], cwd=home, env=environment, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    screen, printed = Screen(), b""
    while True:
        readable, _, _ = select.select([master], [], [], 0.1)
        try:
            piece = os.read(master, 65536) if readable else b""
        except OSError:
            break
        printed += piece
        if not readable and process.poll() is not None:
            break
    os.close(master)
    if process.wait() != 0:
        raise SystemExit("`{}` ended with {}:\n{}".format(command, process.returncode, printed.decode(errors="replace")))
    host = r"\b{}\b".format(re.escape(socket.gethostname()))
    screen.write(re.sub(host, "pc", printed.decode(errors="replace")))
    while screen.lines and not screen.lines[-1]:
        screen.lines.pop()
    return screen.lines, time.monotonic() - begun


def record():
    """Pairs of a time in seconds and a line (a list of styled characters)."""
    pcluster = os.path.abspath(os.environ.get("PCLUSTER_BIN") or str(ROOT / "target" / "debug" / "pcluster"))
    home = pathlib.Path(tempfile.mkdtemp(prefix="pcluster-test-"))
    environment = {
        "HOME": str(home),
        "IPYTHONDIR": str(home / "ipython"),
        "PATH": "{}:{}".format(os.path.dirname(pcluster), os.environ["PATH"]),
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
    }
    try:
        (home / "primes.py").write_text(PROGRAM)
        lines, now = [], 0.5
        for command in COMMANDS:
            typed = [(c, ("1",)) for c in command]
            lines.append((now, [(c, ("32",)) for c in PROMPT] + typed))
            output, took = run(command, str(home), environment)
            now += 0.6 + min(took, 1.5)
            for line in output:
                lines.append((now, line))
            now += 1.2
        return lines
    finally:
        subprocess.run([pcluster, "stop", "--quiet"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.rmtree(str(home), ignore_errors=True)


def spans(line):
    """The line as SVG, with one element per style."""
    pieces, text, style = [], "", None
    for character, now in line + [("", None)]:
        if now != style:
            if text:
                classes = " ".join(COLOURS[code] for code in style)
                escaped = html.escape(text)
                pieces.append('<tspan class="{}">{}</tspan>'.format(classes, escaped) if classes else escaped)
            text, style = "", now
        text += character
    return "".join(pieces)


def picture(lines):
    step, width = 19, COLUMNS * 8.45 + 32
    height = len(lines) * step + 58
    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0:.0f} {1}" width="{0:.0f}" height="{1}" role="img">'.format(width, height),
        "<title>A terminal session: start a cluster, run a map, read its records, stop</title>",
        "<style>",
        "text { font: 14px 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: #d8dee9; white-space: pre }",
        ".bold { font-weight: bold } .dim { opacity: .6 } .red { fill: #f28779 } .green { fill: #a6d189 }",
        ".yellow { fill: #e5c890 } .blue { fill: #8caaee } .cyan { fill: #81c8be }",
        ".l { animation: show 10ms both }",
        "@keyframes show { from { opacity: 0 } to { opacity: 1 } }",
        "@media (prefers-reduced-motion) { .l { animation: none } }",
        "</style>",
        '<rect width="100%" height="100%" rx="8" fill="#232634"/>',
        '<circle cx="18" cy="17" r="5" fill="#e78284"/><circle cx="36" cy="17" r="5" fill="#e5c890"/><circle cx="54" cy="17" r="5" fill="#a6d189"/>',
    ]
    for number, (when, line) in enumerate(lines):
        out.append(
            '<text x="16" y="{}" class="l" style="animation-delay:{:.1f}s" xml:space="preserve">{}</text>'.format(
                50 + number * step, when, spans(line)
            )
        )
    return "\n".join(out + ["</svg>", ""])


def main():
    output = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "terminal.svg"
    lines = record()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(picture(lines))


if __name__ == "__main__":
    main()
