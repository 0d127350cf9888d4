"""The commands of docs/how-to/laptop.md, on hosts that stand for the laptop and the login host, and the messages that it explains."""
import re
import sys

from conftest import PCLUSTER, PYTHON, REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tests"))
import guide_pages  # noqa: E402

PAGE = (REPOSITORY / "docs" / "how-to" / "laptop.md").read_text()
# In this order; the page has some before the steps that they need. (`start --on` has connected, too.)
STEPS = [
    "laptop$ pcluster install me@login.cluster",
    "laptop$ pcluster start --on me@login.cluster --profile hpc --launcher slurm -n 64",
    "laptop$ pcluster disconnect --profile hpc",
    "laptop$ pcluster connect me@login.cluster --profile hpc",
    "laptop$ pcluster map --profile hpc pidigits.py:two_digit_counts files.txt",
    "laptop$ pcluster disconnect --profile hpc",
    "login$  pcluster connection export carried.json --profile hpc --ssh me@login.cluster",
    "laptop$ scp me@login.cluster:carried.json . && pcluster connection import carried.json --profile hpc",
]
# What the page's names are here: no Slurm, a profile that no other test has, and a program that is not installed on the laptop.
HERE = [
    ("me@login.cluster", "login"),
    ("hpc", "guide"),
    (" --launcher slurm -n 64", " -n 2 --python {}".format(PYTHON)),
    ("pidigits.py", "{}/examples/pi/pidigits.py".format(REPOSITORY)),
    ("pcluster ", "{} ".format(PCLUSTER)),
]


def test_the_commands_of_the_guide_work(net):
    commands = re.findall(r"^    ((?:laptop|login)\$ +(?:pcluster|scp) .*?)(?: +#.*)?$", PAGE, flags=re.MULTILINE)
    assert set(commands) == set(STEPS)
    (net.laptop_home / "three.txt").write_text("314159")
    (net.laptop_home / "files.txt").write_text(str(net.laptop_home / "three.txt") + "\n")
    printed = {}
    try:
        for step in STEPS:
            host, command = re.match(r"(\w+)\$ +(.*)", step).groups()
            for name, here in HERE:
                command = command.replace(name, here)
            done = net.run(host, "sh", "-c", "cd && " + command)
            assert done.returncode == 0, "{}:\n{}{}{}".format(command, done.stdout, done.stderr, net.logs())
            printed[step] = done.stdout + done.stderr
    finally:
        net.run("login", PCLUSTER, "stop", "--profile", "guide")
        # Other tests expect a login host without pcluster.
        net.run("login", "rm", "-f", ".local/bin/pcluster")
    assert "[0,0,0," in printed[STEPS[4]]
    shown = re.search(r"^    (profile `hpc` connected .*)$", PAGE, flags=re.MULTILINE).group(1)
    shown = shown.replace("hpc", "guide").replace("me@login.cluster", "login").replace("node7", "login").replace("64", "2")
    assert guide_pages.compared(shown) in guide_pages.compared(printed[STEPS[3]])


def test_the_messages_that_the_guide_explains_are_those_of_the_program():
    sources = "\n".join(path.read_text() for path in (REPOSITORY / "src").rglob("*.rs"))
    sources = re.sub(r"\\\n\s*", "", sources)
    table = PAGE[PAGE.index("| message |"):].split("\n\n")[0]
    messages = [message for row in table.splitlines()[2:] for message in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(messages) > 15
    for message in messages:
        for part in re.split(r"…|Linux on aarch64| s \(logging in\)", message):
            assert part.strip(" ,") in sources, "{!r} of {!r}".format(part, message)
