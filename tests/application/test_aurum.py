"""AurumHarmony itself: the application, its entry points, and its users."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.engine import URL

from aurum_harmony import __version__, create_app
from aurum_harmony.database import User, db
from aurum_harmony.db_smart import ConfigError
from tests.harness import make_legacy

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "aurum_harmony" / "master_codebase" / "Master_AurumHarmony_261125.py"
FIELDS = {
    "date_of_birth": sa.Date,
    "address": sa.Text,
    "city": sa.Text,
    "state": sa.Text,
    "postal_code": sa.Text,
    "country": sa.Text,
    "pan_card": sa.Text,
    "aadhar_card": sa.Text,
    "initial_capital": sa.Float,
    "max_accounts_allowed": sa.Integer,
}
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = create_app({"INSTANCE_PATH": str(tmp_path), "TESTING": True})
    yield app
    with app.app_context():
        db.engine.dispose()


def test_index_and_health(client: FlaskClient) -> None:
    assert client.get("/").get_json() == {"name": "AurumHarmony", "version": __version__, "database": "up-to-date"}
    assert client.get("/healthz").status_code == 200


def test_a_new_database_has_the_users_of_the_model(app: Flask) -> None:
    with app.app_context():
        db.session.add(User(username="a", email="a@example.com", password_hash="x", initial_capital=2.5))
        db.session.commit()
        user = db.session.scalars(sa.select(User)).one()
        assert (user.active, user.initial_capital, user.city) == (True, 2.5, None)
        assert user.created_at is not None
        db.session.add(User(username="b", email="a@example.com", password_hash="x"))
        with pytest.raises(sa.exc.IntegrityError):
            db.session.commit()
        db.session.rollback()


def test_the_ten_fields_have_the_documents_types() -> None:
    columns = User.__table__.c
    for name, kind in FIELDS.items():
        assert type(columns[name].type) is kind, name
        assert columns[name].nullable


def table_digest(engine: sa.Engine) -> tuple[int, str]:
    """Number of rows of the legacy table, and a digest of all that the legacy columns hold."""
    digest, count = hashlib.sha256(), 0
    table = make_legacy.users
    with engine.connect() as connection:
        for row in connection.execute(sa.select(table).order_by(table.c.id)):
            digest.update(repr(tuple(row)).encode())
            count += 1
    return count, digest.hexdigest()


def test_a_legacy_database_gets_the_fields_and_keeps_every_row(url: URL, tmp_path: Path) -> None:
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    make_legacy.fill(engine, 100_000)
    before = table_digest(engine)
    assert before[0] == 100_000
    create_app({"INSTANCE_PATH": str(tmp_path), "SQLALCHEMY_DATABASE_URI": url})
    assert table_digest(engine) == before
    inspector = sa.inspect(engine)
    columns = {column["name"]: column["type"] for column in inspector.get_columns("users")}
    assert columns.keys() == {column.name for column in make_legacy.users.c} | FIELDS.keys()
    for name, kind in FIELDS.items():
        assert isinstance(columns[name], kind), (name, columns[name])
    unique = {tuple(item["column_names"]) for item in inspector.get_unique_constraints("users")}
    assert {("username",), ("email",)} <= unique


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs a command line as a user does, from any folder."""

    def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        local = {"AURUM_LOCAL_DIR": str(tmp_path / "local"), **environment}
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **local},
        )

    return run


def test_migrate_db(command: Command, tmp_path: Path) -> None:
    shim = ROOT / "migrate_db.py"
    flag = tmp_path / "local" / ".db_migration_completed"
    result = command(shim, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("Usage: migrate_db.py [OPTIONS]")
    assert "--force" in result.stdout
    assert not (tmp_path / "local").exists()
    result = command(shim)
    assert result.stderr == ""  # not that this command does not migrate
    assert result.returncode == 0, result.stderr
    assert "migrate_user_fields" in result.stdout
    assert flag.is_file()
    assert "Migration already completed" in command(shim).stdout
    assert "1 forced migration (migrate_user_fields)" in command(shim, "--force").stdout
    assert command(shim, "--nonsense").returncode == 2


def test_bad_urls_are_one_message(command: Command) -> None:
    shim = ROOT / "migrate_db.py"
    for url in ("nonsense s3cret", "postgresql://joe:s3cret@host:port/x", "oddbase://joe:s3cret@host/x"):
        result = command(shim, DATABASE_URL=url)
        assert result.returncode == 1
        assert result.stderr.startswith("Error: ")
        assert "database URL" in result.stderr
        assert "Traceback" not in result.stderr
        assert "s3cret" not in result.stdout + result.stderr
    result = command(SCRIPT, DATABASE_URL="postgresql://joe:s3cret@127.0.0.1:1/x")
    assert result.returncode == 1
    assert "Cannot connect" in result.stderr
    assert "Traceback" not in result.stderr
    assert "s3cret" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("postgres://u:p@h/d", "postgresql+psycopg"),
        ("postgresql://u:p@h/d", "postgresql+psycopg"),
        ("postgresql+psycopg://u:p@h/d", "postgresql+psycopg"),
        ("mysql://u:p@h/d", "mysql+pymysql"),
        ("mariadb://u:p@h/d", "mariadb+pymysql"),
    ],
)
def test_urls_get_the_installed_driver(
    given: str, driver: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AURUM_LOCAL_DIR", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", given)
    app = create_app({"DB_SMART_BOOT": "off"})
    with app.app_context():
        assert db.engine.url.drivername == driver
        assert db.engine.url.password == "p"


def test_the_prefixed_environment_stands_above_database_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:p@h/d")
    monkeypatch.setenv("FLASK_SQLALCHEMY_DATABASE_URI", f"sqlite:///{tmp_path}/x.db")
    monkeypatch.setenv("FLASK_DB_SMART_BOOT", "off")
    app = create_app({"INSTANCE_PATH": str(tmp_path)})
    with app.app_context():
        assert db.engine.url.database == f"{tmp_path}/x.db"
    assert app.config["DB_SMART_BOOT"] == "off"
    with pytest.raises(ConfigError, match="SQLALCHEMY_BINDS"):
        create_app({"INSTANCE_PATH": str(tmp_path), "SQLALCHEMY_BINDS": {"x": "nonsense"}})


class Served:
    """The master script, serving."""

    def __init__(self, environment: dict[str, str], cwd: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
            env={**os.environ, "PORT": "0", "PYTHONUNBUFFERED": "1", **environment},
        )
        self.lines: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            found = re.search(r"Serving on (http://\S+)", line)
            if found:
                self.url = found.group(1)
                return
        raise AssertionError("".join(self.lines))

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return json.load(response)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def test_the_master_script_migrates_serves_and_skips(tmp_path: Path) -> None:
    environment = {"AURUM_LOCAL_DIR": str(tmp_path / "local")}
    for expected in ("migrated", "skipped"):
        served = Served(environment, tmp_path)
        try:
            assert any(f"db-smart: {expected}" in line for line in served.lines), served.lines
            assert served.get("/")["database"] == "up-to-date"
        finally:
            served.stop()
    served = Served({**environment, "FORCE_DB_MIGRATION": "true"}, tmp_path)
    served.stop()
    assert any("db-smart: migrated: forced by FORCE_DB_MIGRATION" in line for line in served.lines)


def test_flask_commands_of_the_checkout(command: Command, tmp_path: Path) -> None:
    flask = ("-m", "flask", "--app", str(ROOT / "wsgi.py"), "db-smart")
    environment = {"PYTHONPATH": str(ROOT)}
    assert command(*flask, "migrate", "--force", **environment).returncode == 0
    report = json.loads(command(*flask, "status", "--json", **environment).stdout)
    assert report["state"] == "up-to-date"
    assert report["flag"]["path"] == str(tmp_path / "local" / ".db_migration_completed")
    assert "Removed the flag" in command(*flask, "reset-flag", **environment).stdout


def test_the_instance_folder_of_a_checkout_and_of_a_wheel(command: Command, tmp_path: Path) -> None:
    code = "from aurum_harmony import config; print(config.instance_path(None))"
    result = command("-c", code, PYTHONPATH=str(ROOT), AURUM_LOCAL_DIR="")
    assert result.stdout.strip() == str(ROOT / "_local")
    source = tmp_path / "source"  # a copy, as a build leaves files behind that a later one would take in
    shutil.copytree(ROOT / "aurum_harmony", source / "aurum_harmony", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "wsgi.py", "migrate_db.py"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", source],
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "site" / "aurum_harmony" / "py.typed").is_file()
    assert not (tmp_path / "site" / "wsgi.py").exists()
    result = command("-c", code, PYTHONPATH=str(tmp_path / "site"), AURUM_LOCAL_DIR="")
    assert result.stdout.strip() == "None"
