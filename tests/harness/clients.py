"""The databases' own clients: ``psql``, ``mariadb``, ``sqlite3``."""

from __future__ import annotations

import os
import subprocess

from sqlalchemy.engine import URL, make_url

from tests.harness import servers


def run_client(url: URL | str, script: str) -> None:
    """Run SQL by the database's own client."""
    result = ask_client(url, script)
    assert result.returncode == 0, f"{result.stderr}\n{script}"


def ask_client(url: URL | str, script: str) -> subprocess.CompletedProcess[str]:
    """Run SQL by the database's own client, which may refuse it."""
    target = make_url(url)
    if target.get_backend_name() == "sqlite":
        command = ["sqlite3", str(target.database)]
    elif target.get_backend_name() == "postgresql":
        host = str(target.query.get("host") or target.host)
        command = ["psql", "-q", "-h", host, "-U", str(target.username), "-d", str(target.database)]
        command += ["-p", str(target.port)] if target.port else []
    else:
        command = ["mariadb", "-h", str(target.host), "-P", str(target.port or 3306), "-u", str(target.username)]
        command += [str(target.database)]
    if servers.program(command[0]) is None:
        servers.missing(f"there is no {command[0]}")
    environment = {**os.environ, "PGPASSWORD": target.password or "", "MYSQL_PWD": target.password or ""}
    return subprocess.run(command, input=script, capture_output=True, text=True, env=environment, timeout=120)
