"""Skipped tests fail in continuous integration (tests/skips.py)."""
import os
import pathlib
import subprocess
import sys

TESTS = '''
import pytest
def test_missing():
    pytest.skip("no such program")
@pytest.mark.skipif(True, reason="not applicable: another system")
def test_other():
    pass
def test_package():
    pytest.importorskip("no_such_package")
@pytest.mark.xfail
def test_known():
    assert False
'''
MODULE = 'import pytest\npytest.importorskip("no_such_package", reason="not installed")\ndef test_a(): pass\n'


def run(tmp_path, text, **environment):
    (tmp_path / "conftest.py").write_text("from skips import *  # noqa: F403\n")
    (tmp_path / "test_some.py").write_text(text)
    others = {key: value for key, value in os.environ.items() if key != "CI"}
    others.update(environment, PYTHONPATH=str(pathlib.Path(__file__).parents[1]))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    return subprocess.run(command, env=others, cwd=str(tmp_path), stdout=subprocess.PIPE, universal_newlines=True).stdout


def test_a_skipped_test_fails_in_continuous_integration(tmp_path):
    assert "3 skipped, 1 xfailed" in run(tmp_path, TESTS)
    output = run(tmp_path, TESTS, CI="true")
    assert "2 failed, 1 skipped, 1 xfailed" in output and "must in continuous integration: Skipped: no such program" in output, output


def test_a_skipped_module_fails_in_continuous_integration(tmp_path):
    assert "1 skipped" in run(tmp_path, MODULE)
    output = run(tmp_path, MODULE, CI="true")
    assert "1 error" in output and "must in continuous integration: Skipped: not installed" in output, output
