"""The flag file: a cache of what the database said, never the truth.

It names the source files that were found applied, as ``stat`` saw them, and the databases that hold them. It
is safe to delete at any time, holds no secret, and is never a reason to apply anything.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..errors import one_line
from ..files import StrPath, give, make_folder, read_regular

if TYPE_CHECKING:
    from ..loading.sources import Sources
    from ..store.database import Database

FORMAT = 1
PROGRAM = "db-smart"
#: What separates the first line of a flag from its stats; a text in JSON has no line break.
_BEFORE_STATS = b',\n"stats": '
#: The last line of a flag.
_LAST = ',\n"packed": "%s"}'
#: A larger file is not ours: 10,000 migration files need less. To read one takes up to 25 times as much memory.
MAX_BYTES = 2 * 1024 * 1024


class FlagInvalid(Exception):
    """The flag cannot be used; ``str(error)`` says why. ``present`` tells whether there is anything at all."""

    def __init__(self, reason: str, *, present: bool = True) -> None:
        super().__init__(reason)
        self.present = present


class DatabaseRecord(SimpleNamespace):
    """What the flag remembers of one database.

    :ivar url: its URL, without password.
    :ivar file: what the database file looked like, ``None`` for a server.
    :ivar database_id: the id in its ``db_smart_state``.
    :ivar applied: the digest of its history in ``db_smart_state``.
    """

    url: str
    file: dict[str, int] | None
    database_id: str
    applied: str

    # No named tuple: to define one takes longer than half a boot.
    def __init__(self, url: str, file: dict[str, int] | None, database_id: str, applied: str) -> None:
        super().__init__(url=url, file=file, database_id=database_id, applied=applied)


class Flag(SimpleNamespace):
    """The content of a flag file; see :class:`~.loading.sources.Sources`.

    :ivar stats: ``None`` where only the first line of the file was read.
    :ivar packed: empty in flags of earlier releases, and where only the first line was read.
    """

    module: str
    roots: list[str]
    digest: str
    racy: bool
    databases: dict[str, DatabaseRecord]

    def __init__(
        self,
        module: str,
        roots: list[str],
        digest: str,
        racy: bool,
        databases: dict[str, DatabaseRecord],
        stats: dict[str, list[int]] | None = None,
        packed: str = "",
    ) -> None:
        super().__init__(module=module, roots=roots, digest=digest, racy=racy, databases=databases)
        self.stats, self.packed = stats, packed


def read(path: StrPath) -> Flag:
    """Read and check a flag file.

    :raises FlagInvalid: it is missing, unreadable, or not a flag of this format.
    """
    return _whole(_content(path))


def _content(path: StrPath) -> bytes:
    """The bytes of a flag file.

    :raises FlagInvalid: there are none that could be a flag's.
    """
    try:
        content = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        raise FlagInvalid("there is no flag file", present=False) from None
    except IsADirectoryError:
        raise FlagInvalid("the flag is a directory") from None
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise FlagInvalid("the flag file is too large to be ours") from None
        raise FlagInvalid(f"the flag file cannot be read ({error.strerror})") from None
    if content is None:
        raise FlagInvalid("the flag is no file, but a pipe, a device or the like")
    if len(content) > MAX_BYTES:
        raise FlagInvalid("the flag file is too large to be ours")
    if not content.strip():
        raise FlagInvalid("the flag file is empty")
    return content


def _whole(content: bytes) -> Flag:
    """The flag that a file contains.

    :raises FlagInvalid: it is not a flag of this format.
    """
    data = _data(content)
    try:
        stats = {name: _stat(_typed(stat, list)) for name, stat in _typed(data["stats"], dict).items()}
        return _parse(data, stats, _typed(data.get("packed", ""), str))
    except (KeyError, TypeError, ValueError):
        raise FlagInvalid("the flag file is damaged") from None


def _head(content: bytes) -> Flag | None:
    """The first line of a flag file, ``None`` where it is not in the lines in which :func:`write` leaves it."""
    end = content.find(_BEFORE_STATS)
    try:
        return None if end < 0 else _parse(_data(content[:end] + b"}"))
    except (FlagInvalid, KeyError, TypeError, ValueError):
        return None


def _data(content: bytes) -> dict[str, Any]:
    """What the JSON of a flag says.

    :raises FlagInvalid: it is none, or not that of this format.
    """
    try:
        data = json.loads(content.decode())
    except (ValueError, RecursionError):
        raise FlagInvalid("the flag file is not one of db-smart (or was cut short)") from None
    if not isinstance(data, dict) or data.get("program") != PROGRAM:
        raise FlagInvalid("the flag file belongs to another program")
    if type(data.get("format")) is not int or data["format"] != FORMAT:
        raise FlagInvalid(f"the flag file has format {data.get('format')!r:.40}, this release writes {FORMAT}")
    return data


def write(path: StrPath, flag: Flag) -> None:
    """Replace the flag file in one step; its directory is made when missing.

    Where root does it, the flag is of the owner of its folder.

    :raises OSError: the file cannot be written, or would be too large to be read again; nothing is left behind.
    """
    fields = {name: value for name, value in vars(flag).items() if name not in ("databases", "stats", "packed")}
    databases = {name: vars(record) for name, record in flag.databases.items()}
    head = {"program": PROGRAM, "format": FORMAT, "note": "safe to delete", **fields, "databases": databases}
    # In three lines, because a boot reads the first one and compares the last one.
    lines = (json.dumps(head)[:-1], _BEFORE_STATS.decode(), json.dumps(flag.stats or {}), _LAST % flag.packed)
    content = "".join(lines)
    if len(content) > MAX_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(content)
        with suppress(OSError):  # a file system without owners
            give(temporary, path.parent)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove(path: StrPath) -> bool:
    """Remove the flag file.

    :returns: whether there was one.
    :raises OSError: it cannot be removed.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def _parse(data: dict[str, Any], stats: dict[str, list[int]] | None = None, packed: str = "") -> Flag:
    """Build the flag from JSON, all but its stats; what has another type than ours raises."""
    databases = {
        name: DatabaseRecord(
            url=_typed(record["url"], str),
            file=None if record["file"] is None else _integers(_typed(record["file"], dict)),
            database_id=_typed(record["database_id"], str),
            applied=_typed(record["applied"], str),
        )
        for name, record in _typed(data["databases"], dict).items()
        if _typed(record, dict)
    }
    if not databases:
        raise ValueError("no database")
    return Flag(
        module=_typed(data["module"], str),
        roots=[_typed(root, str) for root in _typed(data["roots"], list)],
        digest=_typed(data["digest"], str),
        racy=_typed(data["racy"], bool),
        databases=databases,
        stats=stats,
        packed=packed,
    )


def _integers(values: dict[str, Any]) -> dict[str, int]:
    return {name: _typed(value, int) for name, value in values.items()}


def _stat(values: list[Any]) -> list[int]:
    mtime, ctime, size = values
    # In one expression, because there may be thousands of files.
    if type(mtime) is int and type(ctime) is int and type(size) is int:
        return values
    raise TypeError("stat")


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(kind.__name__)
    return value


_UNCHANGED = "nothing changed"


class FlagVerdict:
    """What the flag says.

    :ivar holds: whether boot may go on without asking a database.
    :ivar reason: why, in words.
    :ivar flag: the flag, ``None`` where there is none that can be read.
    :ivar present: whether there is anything at its path.
    :ivar stale: whether it holds but should be written again: only stamps had changed, or it is of an older release.
    """

    def __init__(
        self, holds: bool, reason: str, flag: Flag | None = None, *, present: bool = True, stale: bool = False
    ) -> None:
        self.holds = holds
        self.reason = reason
        self.flag = flag
        self.present = present
        self.stale = stale


def _sources_changed(flag: Flag, sources: Sources) -> str:
    """Which source files differ from those that the flag names."""
    before = flag.stats or {}
    added = [name for name in sources.stats if name not in before]
    removed = [name for name in before if name not in sources.stats]
    changed = [name for name, stat in sources.stats.items() if name in before and before[name] != stat]
    differences = [(n, "is new") for n in added] + [(n, "is gone") for n in removed] + [(n, "changed") for n in changed]
    if not differences:
        return f"the migrations in {sources.roots[0]} changed"
    name, verb = differences[0]
    more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
    return f"{sources.paths.get(name, name)} {verb}{more}"


def check(path: StrPath, module: str, databases: Mapping[str, Database], scanned: Callable[[], Sources]) -> FlagVerdict:
    """Levels 0 and 1: does the flag still fit the sources and the databases? No query, no connection.

    :param scanned: gives the scan of the sources; asked last.
    :raises MigrationError: the sources cannot be scanned.
    """
    try:
        content = _content(path)
        flag = _head(content) or _whole(content)
    except FlagInvalid as error:
        return FlagVerdict(False, str(error), present=error.present)
    if flag.module != module:
        return FlagVerdict(False, f"the flag is for the migrations {one_line(flag.module)!r}", flag)
    for name, record in flag.databases.items():
        reason = _database_changed(databases, name, record)
        if reason is not None:
            return FlagVerdict(False, one_line(reason), flag)
    if "default" in databases and "default" not in flag.databases:
        return FlagVerdict(False, "the flag does not name the default database", flag)
    sources = scanned()
    packed = sources.packed
    if packed and content.endswith((_LAST % packed).encode()) and flag.roots == sources.roots and not flag.racy:
        return FlagVerdict(True, _UNCHANGED, flag)
    head = flag
    try:
        flag = head if head.stats is not None else _whole(content)
    except FlagInvalid as error:
        return FlagVerdict(False, str(error))
    if flag != Flag(**{**vars(head), "stats": flag.stats, "packed": flag.packed}):  # it says something twice
        return FlagVerdict(False, "the flag file is damaged")
    same = flag.stats == sources.stats and flag.roots == sources.roots
    # One of an earlier release, or of a time when the system listed the files in another order, is written again.
    if same and not flag.racy:
        return FlagVerdict(True, _UNCHANGED, flag, stale=bool(packed))
    if flag.digest == sources.digest:
        reason = _UNCHANGED if same else "only time stamps or places of the migrations changed"
        return FlagVerdict(True, reason, flag, stale=True)
    return FlagVerdict(False, one_line(_sources_changed(flag, sources)), flag)


def _database_changed(databases: Mapping[str, Database], name: str, record: DatabaseRecord) -> str | None:
    """Why the flag's record no longer fits a database; ``None`` when it does."""
    database = databases.get(name)
    if database is None:
        return f"the application no longer has the database {name!r}"
    if database.url != record.url:
        return f"the database {name!r} is now {database.url}, was {record.url}"
    if database.file is None or record.file is None:
        return None if database.file is None and record.file is None else "the flag file is damaged"
    try:
        now = database.file_state()
    except OSError as error:
        return f"the database file {database.file} is gone or cannot be read ({error.strerror})"
    assert now is not None
    if now.keys() != record.file.keys() or now["inode"] != record.file["inode"]:
        return f"the database file {database.file} was replaced"
    if now["schema"] != record.file["schema"]:
        return f"the schema of the database file {database.file} was changed or an older copy put back"
    if now["changes"] < record.file["changes"]:
        return f"an older copy of the database file {database.file} was put back"
    return None
