"""Spans of OpenTelemetry: the run, its migrations, and their statements."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from aurum_harmony.db_smart import MigrationFailed
from aurum_harmony.db_smart.spans import _summary
from tests.harness.processes import ROOT
from tests.harness.project import Project

pytest.importorskip("opentelemetry.sdk")
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

TWO = """
@migration
def items(op):
    op.create_table("items", Column("id", Integer, primary_key=True), Column("name", String(50)))
    op.execute("INSERT INTO items VALUES (1, 'secret-name')")

@migration
def size(op):
    op.add_column("items", Column("size", Integer))
"""
BROKEN = """
@migration
def broken(op):
    op.create_table("items", Column("id", Integer, primary_key=True), Column("name", String(50), unique=True))
    op.execute("INSERT INTO items VALUES (1, 'secret-name')")
    op.execute("INSERT INTO items VALUES (1, 'secret-name')")
"""


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Takes the spans; a process can have one provider only."""
    found, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(found))
    trace.set_tracer_provider(provider)
    return found


@pytest.fixture(autouse=True)
def _clear(exporter: InMemorySpanExporter) -> Iterator[None]:
    exporter.clear()
    yield
    exporter.clear()


def named(exporter: InMemorySpanExporter, name: str) -> list[Any]:
    """The spans of a name, in the order in which they began."""
    found = [one for one in exporter.get_finished_spans() if one.name == f"db_smart.{name}"]
    return sorted(found, key=lambda one: one.start_time)


def test_run_migrations_and_statements(project: Project, exporter: InMemorySpanExporter) -> None:
    project.write(TWO)
    with trace.get_tracer("test").start_as_current_span("deploy") as deploy:
        project.boot()
    (run,) = named(exporter, "run")
    items, size = named(exporter, "migration")
    assert run.parent.span_id == deploy.get_span_context().span_id
    assert {one.parent.span_id for one in (items, size)} == {run.context.span_id}
    assert [one.attributes["db_smart.migration"] for one in (items, size)] == ["items", "size"]
    statements = named(exporter, "statement")
    said = [(one.attributes["db.operation.name"], one.attributes["db.query.summary"]) for one in statements]
    assert said == [
        ("CREATE TABLE", "CREATE TABLE items"),
        ("INSERT", "INSERT items"),
        ("ALTER TABLE", "ALTER TABLE items"),
    ]
    assert [one.parent.span_id for one in statements] == [items.context.span_id] * 2 + [size.context.span_id]
    system = {"mysql": "mariadb"}.get(project.dialect, project.dialect)
    for one in (run, items, size, *statements):
        assert one.attributes["db.system.name"] == system
        assert one.attributes["db.namespace"]
        assert one.status.is_unset
        assert one.end_time >= one.start_time
    assert "secret" not in "".join(one.to_json() for one in exporter.get_finished_spans())
    exporter.clear()
    project.boot()
    assert named(exporter, "run") == []


def test_a_failure(project: Project, exporter: InMemorySpanExporter) -> None:
    project.write(BROKEN)
    with pytest.raises(MigrationFailed):
        project.boot(DB_SMART_DDL_RETRIES=0)
    (run,), (broken,) = named(exporter, "run"), named(exporter, "migration")
    *done, last = named(exporter, "statement")
    assert all(one.status.is_unset for one in done)
    assert [one.status.status_code.name for one in (run, broken, last)] == ["ERROR"] * 3
    assert run.attributes["error.type"] == "MigrationFailed"
    assert "Violation" in last.attributes["error.type"] or last.attributes["error.type"] == "IntegrityError"
    text = "".join(one.to_json() for one in exporter.get_finished_spans())
    assert "secret" not in text
    assert not any(one.events for one in exporter.get_finished_spans())


def test_a_statement_that_fails_and_is_caught(sqlite_project: Project, exporter: InMemorySpanExporter) -> None:
    sqlite_project.write("""
    @migration
    def tries(op):
        try:
            op.execute("INSERT INTO nowhere VALUES (1)")
        except Exception:
            pass
        op.execute("CREATE TABLE items (id INTEGER)")
    """)
    sqlite_project.boot()
    first, second = named(exporter, "statement")
    assert (first.attributes["error.type"], first.status.status_code.name) == ("_OTHER", "ERROR")
    assert second.status.is_unset
    (migration,) = named(exporter, "migration")
    assert migration.status.is_unset


def test_who_exports_cannot_break_a_run(
    sqlite_project: Project, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the collector is gone")

    monkeypatch.setattr(SimpleSpanProcessor, "on_end", fail)
    monkeypatch.setattr(SimpleSpanProcessor, "on_start", fail)
    sqlite_project.write(TWO)
    assert sqlite_project.boot().applied == ("items", "size")


def test_without_a_provider_or_the_package(sqlite_project: Project) -> None:
    """The package is imported only by a process that migrates, and need not be there."""
    sqlite_project.write(TWO)
    script = (
        "import sys; sys.modules['opentelemetry'] = None if {hidden} else sys.modules.pop('opentelemetry', None);"
        "sys.modules['opentelemetry'] is None and not {hidden} and sys.modules.pop('opentelemetry');"
        "sys.path.insert(0, {folder!r});"
        "from pathlib import Path; from tests.harness.project import Project;"
        "report = Project(Path({folder!r}), {module!r}, {url!r}).boot();"
        "print(report.decision, 'opentelemetry.trace' in sys.modules)"
    )
    for hidden, said in ((True, "migrated False"), (True, "skipped False"), (False, "skipped False")):
        text = script.format(
            hidden=hidden,
            folder=str(sqlite_project.directory),
            module=sqlite_project.module,
            url=str(sqlite_project.url),
        )
        run = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT, check=True)
        assert run.stdout.strip() == said, run.stderr


@pytest.mark.parametrize(
    ("statement", "summary"),
    [
        ("CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS ix ON items (n)", ("CREATE INDEX", "ix")),
        (
            'ALTER TABLE ONLY "my ""schema"."items" ADD COLUMN c TEXT DEFAULT \'secret\'',
            ("ALTER TABLE", '"my ""schema"."items"'),
        ),
        ("/* secret */ -- secret\n insert into `items` values ('secret')", ("INSERT", "`items`")),
        ("UPDATE items SET n = 'secret'", ("UPDATE", "items")),
        ("DELETE FROM items WHERE n = 'secret'", ("DELETE", "items")),
        ("CREATE USER joe IDENTIFIED BY 'secret'", ("CREATE USER", "joe")),
        ("SELECT 'secret' FROM items", ("SELECT", "")),
        ("SET PASSWORD = 'secret'", ("SET", "")),
        ("'secret'", ("", "")),
        ("", ("", "")),
        ("(SELECT 1)", ("", "")),
        ("CREATE MATERIALIZED VIEW v AS SELECT 1", ("CREATE VIEW", "v")),
        ("CREATE INDEX ON items (n)", ("CREATE INDEX", "items")),
        ("COMMENT ON TABLE items IS 'secret'", ("COMMENT TABLE", "items")),
        ("TRUNCATE TABLE items", ("TRUNCATE", "items")),
    ],
)
def test_what_a_statement_is_about(statement: str, summary: tuple[str, str]) -> None:
    assert _summary(statement) == summary
