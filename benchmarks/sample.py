"""One sample in a process of its own: ``python -m benchmarks.sample MODULE:FUNCTION [new] < project.json``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib import import_module
from tempfile import TemporaryDirectory
from typing import Any

from .projects import Project, count_columns, create_items, sqlite_url

#: What a sample found; ``ms`` is the time in milliseconds.
Result = dict[str, Any]


@contextmanager
def timed() -> Iterator[Result]:
    """Time a block: the result is filled in at its end."""
    result: Result = {}
    started = time.perf_counter()
    yield result
    result["ms"] = (time.perf_counter() - started) * 1000


@contextmanager
def scratch(project: Project) -> Iterator[Project]:
    """The same project on a new SQLite database, which holds the bare table only, and all columns at the end."""
    with TemporaryDirectory(dir=project.directory) as directory:
        url = sqlite_url(directory)
        create_items(url)
        yield replace(project, instance=directory, url=url)
        added = count_columns(url) - 1
        if added != project.size:
            raise RuntimeError(f"{added} of {project.size} columns were added.")


def main() -> None:
    """Take the sample that the command line names of the project on standard input; print it as JSON.

    With ``new`` it is taken on a new SQLite database.
    """
    module, _, function = sys.argv[1].partition(":")
    project = Project(**json.load(sys.stdin))
    sys.path.insert(0, project.directory)
    with scratch(project) if sys.argv[2:] == ["new"] else nullcontext(project) as where:
        result = getattr(import_module(module), function)(where)
    print(f"\n{json.dumps(result)}")


if __name__ == "__main__":
    main()
