#!/usr/bin/env python3
"""Finds wording that ci/words.txt replaces: in pages, comments, strings and names. Prints FILE:LINE: and what to write instead.

Exits with 1 if it finds any. Standard library only.
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUFFIXES = {".md", ".rs", ".py", ".toml", ".yaml", ".tera", ".sh"}
EXCLUDED = ("tests/fixtures/", "ci/words.")
FENCE = re.compile(r"^\s*(```|~~~)")


def rules():
    """(pattern, replacement) of each line of ci/words.txt: a regular expression, a tab, what to write instead."""
    for line in (ROOT / "ci/words.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            pattern, replacement = line.split("\t", 1)
            yield re.compile(pattern), replacement.strip()


def tracked_files():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in listed.decode().split("\0"):
        if pathlib.Path(name).suffix in SUFFIXES and not name.startswith(EXCLUDED) and (ROOT / name).is_file():
            yield name


def lines_of(name):
    """(number, text) of each line; of a page only its prose, not what is quoted as code or as output."""
    is_page, is_code = name.endswith(".md"), False
    for number, text in enumerate((ROOT / name).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if is_page and FENCE.match(text):
            is_code = not is_code
        elif not is_code:
            yield number, re.sub(r"`[^`]*`", "``", text) if is_page else text


def main():
    known, found, seen = list(rules()), 0, 0
    for name in tracked_files():
        seen += 1
        for number, text in lines_of(name):
            for pattern, replacement in known:
                for match in pattern.finditer(text):
                    print(f"{name}:{number}: {match[0]!r}: write {replacement}")
                    found += 1
    if not known or seen < 100:
        sys.exit(f"ci/words.txt has {len(known)} rules, and {seen} files were found: the check would mean nothing")
    print(f"{found} found by {len(known)} rules in {seen} files")
    sys.exit(1 if found else 0)


main()
