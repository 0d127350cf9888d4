"""Tests that the commands of the documentation work as written and print the output shown (tests/guide_pages.py)."""
import html
import os
import re
import subprocess
import sys

import pytest

from conftest import REPOSITORY, pcluster_binary

sys.path.insert(0, str(REPOSITORY / "tests"))
import guide_pages  # noqa: E402

PAGES = ["README.md", "docs/tutorial.md", "docs/how-to/grid-search.md", "docs/how-to/pipeline.md", "docs/how-to/notebook.md", "docs/faq.md"]


@pytest.mark.parametrize("page", PAGES)
def test_the_page_shows_what_its_commands_print(page, guarded_home):
    environment = guide_pages.environment_for(guarded_home, pcluster_binary(), sys.executable)
    (guarded_home / "examples").symlink_to(REPOSITORY / "examples")
    guide_pages.run_page(page, guide_pages.bash(guarded_home, environment), guide_pages.names_of_this_machine(guarded_home))


def test_every_page_with_a_session_is_run():
    elsewhere = {"docs/how-to/conda-slurm.md", "docs/how-to/laptop.md"}
    pages = {str(page.relative_to(REPOSITORY)) for page in (REPOSITORY / "docs").rglob("*.md") if "```console" in page.read_text()}
    assert pages - elsewhere == set(PAGES) - {"README.md"}


def test_the_readme_runs_pcluster_in_sessions_only():
    """Ensures that every command in it is tested. Continuous integration runs `cargo xtask demo` and `test`."""
    text = (REPOSITORY / "README.md").read_text()
    blocks = [block for language, block in re.findall(r"```(\w*)\n(.*?)```", text, flags=re.DOTALL) if language == "sh"]
    lines = "".join(blocks).splitlines() + [line for line in text.splitlines() if line.startswith("    ")]
    assert len(blocks) == 2 and "cargo xtask demo" in blocks[1]
    assert not [line for line in lines if re.match(r" *(\$ )?pcluster ", line)]


def test_the_recording_is_of_a_real_run(tmp_path):
    """The same commands print the output that it shows; `ci/recording.py` recreates it."""

    def text_of(svg):
        lines = re.findall(r'<text[^>]*class="l"[^>]*>(.*)</text>', svg.read_text())
        return guide_pages.compared("\n".join(html.unescape(re.sub(r"<[^>]*>", "", line)) for line in lines))

    new = tmp_path / "terminal.svg"
    environment = dict(os.environ, PCLUSTER_BIN=pcluster_binary())
    subprocess.run([sys.executable, str(REPOSITORY / "ci" / "recording.py"), str(new)], check=True, env=environment, timeout=110)
    assert "pcluster map" in text_of(new)
    assert text_of(new) == text_of(REPOSITORY / "docs" / "images" / "terminal.svg")


def test_differences_to_a_page_are_detected():
    step = guide_pages.steps_of("```console\n$ echo a\na\n$ true\n```\n")
    assert [(s.command, s.text, s.first, s.last) for s in step] == [("echo a", "a\n", 2, 3), ("true", "", 4, 4)]
    table = "TASK  STATE  ENGINE  INPUT\n1.0   {}     {}       [0]\n"
    assert guide_pages.compared(table.format("ok", 0)) == guide_pages.compared(table.format("ok", 1))
    assert guide_pages.compared(table.format("ok", 0)) != guide_pages.compared(table.format("error", 0))
    assert guide_pages.compared("in 1.2 s") == guide_pages.compared("in 12 ms") != guide_pages.compared("in 2 pieces")
