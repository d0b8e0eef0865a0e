"""Runs Django's own tests of task backends with the queue's backend.

    python run_upstream_tests.py DJANGO_SOURCES

The tests are copied from Django's source distribution. In the copy, its two backends are replaced
by those of `upstream_backends`; tests that hide all apps hide all but that of the tasks; and for
Django 5.2, which has no such tests, `django.tasks` of 6.0's is replaced by the package
`django-tasks`. Nothing else is changed. Tests of what this backend does otherwise are left out by
name, with the reason.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

import django
from django.conf import settings
from django.test.utils import get_runner

NOT_FOR_US = {
    "doesn't support priorities: they belong to job types": [
        "TaskTestCase.test_using_priority",
        "TaskTestCase.test_chained_using",
        "TaskTestCase.test_invalid_priority",
    ],
    "supports results and run_after, which Django's ImmediateBackend doesn't": [
        "ImmediateBackendTestCase.test_cannot_get_result",
        "ImmediateBackendTestCase.test_cannot_refresh_result",
        "ImmediateBackendTestCase.test_cannot_pass_run_after",
    ],
    "keeps results in a file: changing an object in memory doesn't change it": [
        "DummyBackendTestCase.test_refresh_result",
        "DummyBackendTestCase.test_refresh_result_async",
    ],
    "records a KeyboardInterrupt that a task raises as the task's error": [
        "ImmediateBackendTestCase.test_throws_keyboard_interrupt",
    ],
    "names the exception UnsupportedResult, a Fail, so that the task doesn't run again": [
        "ImmediateBackendTestCase.test_complex_return_value",
    ],
}
_NAMES = ("test_dummy_backend", "test_immediate_backend", "test_tasks")
_MINIMUM = 61


def adapted(source: str) -> str:
    """Return a module of the tests that uses our backends."""
    source = re.sub(
        r"django\.tasks\.backends\.(dummy|immediate)( import |\.)",
        r"upstream_backends\2",
        source,
    )
    # The backend looks for tasks in installed apps only.
    source = source.replace("available_apps = []", 'available_apps = ["tasks"]')
    if django.VERSION < (6, 0):
        source = source.replace("django.tasks", "django_tasks")
        source = source.replace("support async Tasks.", "support async tasks.")
        source = source.replace("InvalidTaskBackend", "InvalidTaskBackendError")
        source = re.sub(r"\bInvalidTask\b", "InvalidTaskError", source)
    return source


def main(sources: Path) -> int:
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(sources / "tests/tasks", Path(directory) / "tasks")
        for file in (Path(directory) / "tasks").glob("*.py"):
            file.write_text(adapted(file.read_text("utf-8")), "utf-8")
        sys.path.insert(0, directory)
        settings.configure(
            BASE_DIR=directory,
            DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
            DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
            INSTALLED_APPS=[
                "dbbasic_queue.django",
                "tasks",
            ],
            SILENCED_SYSTEM_CHECKS=["dbbasic_queue.W004"],  # each test sets TASKS itself
            USE_TZ=True,
        )
        django.setup()
        runner = get_runner(settings)(verbosity=1, interactive=False)
        suite = runner.build_suite([f"tasks.{name}" for name in _NAMES])
        left_out = {name: why for why, names in NOT_FOR_US.items() for name in names}
        tests = list(_each(suite))
        found = {_name(test) for test in tests}
        assert left_out.keys() <= found, f"no such tests: {left_out.keys() - found}"
        chosen = [test for test in tests if _name(test) not in left_out]
        assert len(chosen) >= _MINIMUM, len(chosen)
        runner.build_suite = lambda *_, **__: type(suite)(chosen)
        failures = runner.run_tests([])
        print(
            f"Django {django.__version__}: {len(chosen)} of its tests ran; the others don't apply:"
        )
        for why, names in NOT_FOR_US.items():
            print(f"  the backend {why}:", *names, sep="\n    ")
        return int(failures > 0)


def _each(suite: unittest.TestSuite) -> list[unittest.TestCase]:
    found: list[unittest.TestCase] = []
    for test in suite:
        found += _each(test) if isinstance(test, unittest.TestSuite) else [test]
    return found


def _name(test: unittest.TestCase) -> str:
    return f"{type(test).__name__}.{test._testMethodName}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
