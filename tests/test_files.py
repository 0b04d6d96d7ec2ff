"""What stands where the extension's own files belong: links, pipes, devices, directories, huge files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from . import processes
from .conftest import CHILD, Project

MAKE_T = """
@migration
def make_t(op: Operations) -> None:
    op.create_table("t", Column("id", Integer, primary_key=True))
"""
#: How long a process may take at most, with much room; a hang is what it is to find.
BOUND = 40
VICTIM = "precious\n" * 250


def put(kind: str, path: Path) -> Path | None:
    """Put something of a kind where a file is expected.

    :returns: the file that a link leads to, which must stay as it is.
    """
    path.parent.mkdir(exist_ok=True)
    victim = path.with_name("victim")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "huge":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    elif kind == "link":
        victim.write_text(VICTIM)
        path.symlink_to(victim)
        return victim
    elif kind == "hard link":
        victim.write_text(VICTIM)
        path.hardlink_to(victim)
        return victim
    elif kind == "dangling link":
        path.symlink_to(victim)
    else:
        path.symlink_to(kind)
    return None


KINDS = ["fifo", "directory", "link", "/dev/zero", "/dev/urandom", "huge"]
LINKS = ["fifo", "link", "dangling link", "hard link"]


def boot(project: Project) -> subprocess.CompletedProcess[str]:
    """Boot in a process of its own, whose memory is bounded: a hang or a flood must not take the tests with it."""
    url = make_url(project.url).render_as_string(hide_password=False)
    bounded = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
    return subprocess.run(
        [sys.executable, "-c", bounded + CHILD, str(project.directory), project.module, str(project.instance), url],
        capture_output=True,
        text=True,
        env=processes.environment(),
        timeout=BOUND,
        check=False,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_at_the_flag(sqlite_project: Project, kind: str) -> None:
    sqlite_project.write(MAKE_T)
    victim = put(kind, sqlite_project.flag)
    done = boot(sqlite_project)
    assert (done.returncode, done.stdout.strip()) == (0, "migrated"), done.stderr
    assert "Traceback" not in done.stderr
    assert victim is None or victim.read_text() == VICTIM


@pytest.mark.parametrize("kind", LINKS)
def test_what_stands_at_the_lock_of_the_flag(sqlite_project: Project, kind: str) -> None:
    sqlite_project.write(MAKE_T)
    lock = sqlite_project.flag.with_name(f"{sqlite_project.flag.name}.lock")
    victim = put(kind, lock)
    done = boot(sqlite_project)
    assert (done.returncode, done.stdout.strip()) == (0, "migrated"), done.stderr
    assert victim is None or victim.read_text() == VICTIM
    assert not lock.with_name("victim").exists() or victim is not None


@pytest.mark.parametrize("kind", LINKS)
def test_what_stands_at_the_holder(sqlite_project: Project, kind: str) -> None:
    sqlite_project.write(MAKE_T)
    victim = put(kind, Path(f"{make_url(sqlite_project.url).database}.db-smart.holder"))
    done = boot(sqlite_project)
    assert (done.returncode, done.stdout.strip()) == (0, "migrated"), done.stderr
    assert victim is None or victim.read_text() == VICTIM


@pytest.mark.parametrize("kind", ["fifo", "link", "/dev/zero", "/dev/urandom", "huge"])
def test_a_holder_that_cannot_be_read_is_another_process(sqlite_project: Project, kind: str) -> None:
    from filelock import FileLock

    from aurum_harmony.db_smart.database import Database
    from aurum_harmony.db_smart.lock import lock_of
    from aurum_harmony.db_smart.settings import LockSettings

    app, _ = sqlite_project.app()
    file = str(make_url(sqlite_project.url).database)
    put(kind, Path(f"{file}.db-smart.holder"))
    with app.app_context(), FileLock(f"{file}.db-smart.lock"):
        engine = app.extensions["sqlalchemy"].engines[None]
        holder = lock_of(Database("default", None, engine), LockSettings()).holder()
    assert holder is not None
    assert holder.name == "another process"
