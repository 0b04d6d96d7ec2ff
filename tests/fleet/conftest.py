"""Fleets of each kind."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import URL

from tests.harness.fleets import FleetProject

KINDS = ("sqlite", "postgresql", "schemas", "mariadb")
_numbers = itertools.count()


@pytest.fixture
def make_fleet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_url: Callable[[str], URL]
) -> Iterator[Callable[..., FleetProject]]:
    """Makes projects with a fleet: ``make_fleet("sqlite")``."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[FleetProject] = []

    def make(kind: str, *names: str, **options: Any) -> FleetProject:
        url = new_url("postgresql" if kind == "schemas" else kind)
        project = FleetProject(tmp_path, f"fleet_migrations_{next(_numbers)}", url, kind=kind, options=options)
        made.append(project)
        project.make(*names)
        return project

    yield make
    for project in made:
        project.clean()
        for name in [name for name in sys.modules if name.split(".")[0] == project.module]:
            del sys.modules[name]


@pytest.fixture(params=KINDS)
def fleet(request: pytest.FixtureRequest, make_fleet: Callable[..., FleetProject]) -> FleetProject:
    """A fleet of three tenants, of each kind in turn."""
    return make_fleet(request.param, "a", "b", "c")
