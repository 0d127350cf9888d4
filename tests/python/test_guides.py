"""The commands of the book's pages work as written, and print what the pages show (tests/guide_pages.py)."""
import pathlib
import socket
import subprocess
import sys
import tempfile

import pytest

from conftest import REPOSITORY, pcluster_binary

sys.path.insert(0, str(REPOSITORY / "tests"))
import guide_pages  # noqa: E402

PAGES = ["docs/faq.md"]


@pytest.fixture
def home():
    """A home directory, in which nothing stays running."""
    home = pathlib.Path(tempfile.mkdtemp(prefix="pcluster-test-"))
    guard = (REPOSITORY / "tests" / "guard.sh").read_text()
    guard = subprocess.Popen(
        ["sh", "-c", guard, "guard", str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    yield home
    guard.stdin.close()
    guard.wait(60)


@pytest.mark.parametrize("page", PAGES)
def test_the_page_shows_what_its_commands_print(page, home):
    environment = guide_pages.environment_for(home, pcluster_binary(), sys.executable)
    (home / "examples").symlink_to(REPOSITORY / "examples")
    replaced = [
        (str(home / "ipython"), guide_pages.HOME + "/.ipython"),
        (str(home), guide_pages.HOME),
        (socket.gethostname(), guide_pages.HOST),
        (str(REPOSITORY), "/src/pcluster"),
        (sys.base_prefix, "/usr"),
    ]
    guide_pages.run_page(page, guide_pages.bash(home, environment), replaced)


def test_every_page_with_a_session_is_run():
    elsewhere = {"docs/how-to/conda-slurm.md", "docs/how-to/laptop.md"}
    pages = {str(page.relative_to(REPOSITORY)) for page in (REPOSITORY / "docs").rglob("*.md") if "```console" in page.read_text()}
    assert pages - elsewhere == set(PAGES)


def test_what_a_page_does_not_show_is_noticed():
    step = guide_pages.steps_of("```console\n$ echo a\na\n$ true\n```\n")
    assert [(s.command, s.text, s.first, s.last) for s in step] == [("echo a", "a\n", 2, 3), ("true", "", 4, 4)]
    table = "TASK  STATE  ENGINE  INPUT\n1.0   {}     {}       [0]\n"
    assert guide_pages.compared(table.format("ok", 0)) == guide_pages.compared(table.format("ok", 1))
    assert guide_pages.compared(table.format("ok", 0)) != guide_pages.compared(table.format("error", 0))
    assert guide_pages.compared("in 1.2 s") == guide_pages.compared("in 12 ms") != guide_pages.compared("in 2 pieces")
