"""The application of the README: an older database gets the schema of its models, on each kind of database."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.engine import URL

from tests.harness.processes import ROOT
from tests.harness.project import Project


def examples(document: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The two files of the example, as the README shows them, where Python finds them."""
    blocks = examples("README.md")
    (application,) = [block for block in blocks if "smart.init_app(app" in block]
    (migrations,) = [block for block in blocks if "def add_price" in block]
    (tmp_path / "shop.py").write_text(application, encoding="utf-8")
    (tmp_path / "shop_migrations.py").write_text(migrations, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("shop", "shop_migrations"):
        sys.modules.pop(name, None)


def test_the_example_brings_an_older_database_to_its_models(shop: Path, url: URL) -> None:
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    older = sa.MetaData()
    sa.Table(
        "items", older, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(50), nullable=False)
    )
    older.create_all(engine)
    example = importlib.import_module("shop")
    app = example.create_app({"SQLALCHEMY_DATABASE_URI": url})
    assert app.test_client().get("/").json == {"items": 0}
    with app.app_context():
        example.db.engine.dispose()
    ours = {"db_smart_history", "db_smart_state", "db_smart_progress", "db_smart_objects"}

    def include(name: str | None, kind: str, _: object) -> bool:
        return kind != "table" or name not in ours

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": include})
        assert compare_metadata(context, example.db.metadata) == []


def test_the_constraints_of_the_document_can_be_reflected(project: Project) -> None:
    """And with no warning of SQLAlchemy, as any warning is an error here."""
    blocks = examples("docs/migrations.md")
    chosen = [block for name in ("make_orders", "constrain_orders") for block in blocks if f"def {name}(" in block]
    assert len(chosen) == 2
    users = """
@migration
def make_users(op: Operations) -> None:
    op.create_table("users", Column("id", Integer, primary_key=True), Column("nickname", String(20)))

"""
    project.write("\n\n".join([users, *chosen]))
    assert project.boot().applied == ("make_users", "make_orders", "constrain_orders", "drop_old_check")
    engine = sa.create_engine(project.url, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        inspector = sa.inspect(connection)
        (key,) = inspector.get_foreign_keys("orders")
        assert (key["name"], key["options"]) == ("fk_orders_user", {"ondelete": "CASCADE"})
        assert inspector.get_unique_constraints("users")[0]["name"] == "uq_users_nickname"
        assert inspector.get_check_constraints("orders") == []
    assert project.run("migrate", "--force").exit_code == 0
