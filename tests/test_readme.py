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

from .processes import ROOT


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The two files of the example, as the README shows them, where Python finds them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
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
