"""In continuous integration (`CI` is set) a skipped test fails: everything must run there. Only `not applicable: …` is a reason that
no machine can remove, such as a test of one batch system that runs with another. Both conftest.py import these hooks."""
import os

import pytest


def fail_in_ci(report):
    if report.outcome == "skipped" and not hasattr(report, "wasxfail") and os.environ.get("CI"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not reason.startswith("Skipped: not applicable: "):
            report.outcome = "failed"
            report.longrepr = "cannot run here, and must in continuous integration: " + reason


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    fail_in_ci((yield).get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report():
    fail_in_ci((yield).get_result())
