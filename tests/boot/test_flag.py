"""The flag file: what is written is read again, and nothing else is ever taken for a flag."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aurum_harmony.db_smart.boot import flag as flags
from aurum_harmony.db_smart.boot.flag import FORMAT, MAX_BYTES, DatabaseRecord, Flag, FlagInvalid
from tests.harness.processes import BECOME_NOBODY, run_python
from tests.harness.project import Project

FLAG = Flag(
    module="app.migrations",
    roots=["/srv/app/migrations"],
    stats={"__init__.py": [1, 2, 0], "a.py": [1_700_000_000_000_000_001, 1_700_000_000_000_000_002, 42]},
    digest="d1",
    racy=False,
    databases={
        "default": DatabaseRecord("sqlite:////srv/app.db", {"inode": 7, "changes": 3, "schema": 2}, "id1", "a1"),
        "reports": DatabaseRecord("postgresql://app:***@db/reports", None, "id2", "a2"),
    },
    packed="0f",
)


def changed(flag: Flag, **values: Any) -> Flag:
    """A flag that says something else."""
    return Flag(**{**vars(flag), **values})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the flag is to be; there is none."""
    return tmp_path / "flag"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flag's path for the many examples of one test."""
    return tmp_path_factory.mktemp("flag") / "flag"


def reason(path: Path) -> str:
    """Why the flag, which is there, cannot be used."""
    with pytest.raises(FlagInvalid) as caught:
        flags.read(path)
    assert caught.value.present is True
    return str(caught.value)


def content(**changes: object) -> dict[str, Any]:
    """The JSON of a good flag, with changes at its top."""
    databases = {name: vars(record) for name, record in FLAG.databases.items()}
    flag = deepcopy({**vars(FLAG), "databases": databases})
    return {"program": "db-smart", "format": FORMAT, "note": "safe to delete", **flag, **changes}


# Round trip

# What a file system can name and Python pass on: text, and bytes that are none.
_NAMES = st.text(max_size=8) | st.binary(min_size=1, max_size=4).map(os.fsdecode)
_INTEGERS = st.integers(-(2**63), 2**64)
_RECORDS = st.builds(
    DatabaseRecord,
    url=_NAMES,
    file=st.none() | st.dictionaries(_NAMES, _INTEGERS, max_size=3),
    database_id=_NAMES,
    applied=_NAMES,
)
_FLAGS = st.builds(
    Flag,
    module=_NAMES,
    roots=st.lists(_NAMES, max_size=3),
    stats=st.dictionaries(_NAMES, st.lists(_INTEGERS, min_size=3, max_size=3), max_size=4),
    digest=_NAMES,
    racy=st.booleans(),
    databases=st.dictionaries(_NAMES, _RECORDS, min_size=1, max_size=3),
    packed=st.text("0123456789abcdef"),
)


@settings(max_examples=80, deadline=None)
@given(flag=_FLAGS)
@example(flag=FLAG)
def test_what_is_written_is_read(shared: Path, flag: Flag) -> None:
    flags.write(shared, flag)
    assert flags.read(shared) == flag


def test_order_of_the_databases_is_kept(path: Path) -> None:
    flags.write(path, FLAG)
    assert list(flags.read(path).databases) == ["default", "reports"]


def test_flag_is_json_that_names_its_program_and_says_that_it_may_be_deleted(path: Path) -> None:
    flags.write(path, FLAG)
    assert json.loads(path.read_bytes()) == content()


def test_flag_with_fields_of_a_later_release_is_read(path: Path) -> None:
    path.write_text(json.dumps(content(more=1)))
    assert flags.read(path) == FLAG


# What is asked of it at boot


@pytest.fixture
def booted(sqlite_project: Project) -> Project:
    """A project whose flag is trusted by time stamps alone."""
    sqlite_project.write("A = 1\n", "a")
    sqlite_project.write("@migration\ndef nothing(op: Operations) -> None:\n    pass\n", "b")
    sqlite_project.boot()
    flags.write(sqlite_project.flag, changed(flags.read(sqlite_project.flag), racy=False))
    return sqlite_project


def test_unchanged_sources_are_compared_by_one_text(booted: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    loads = json.loads

    def spy(content: str) -> Any:
        parsed.append(content)
        return loads(content)

    monkeypatch.setattr(json, "loads", spy)
    assert booted.boot().reason == "nothing changed"
    assert len(parsed) == 1
    assert "stats" not in parsed[0]


@pytest.mark.parametrize("packed", [True, False])
def test_flag_of_an_earlier_release_holds_and_is_written_again(booted: Project, packed: bool) -> None:
    new = booted.flag.read_bytes()
    data = json.loads(new)
    if not packed:
        del data["packed"]
    booted.flag.write_text(json.dumps({**data, "stats": data["stats"], "databases": data["databases"]}))
    report = booted.boot()
    assert (report.decision, report.reason) == ("skipped", "nothing changed")
    written = booted.flag.read_bytes()
    assert json.loads(written) == {**json.loads(new), "racy": True}
    assert written.count(b"\n") == new.count(b"\n") == 2


def test_flag_that_is_written_again_does_not_vouch_for_an_edit_made_meanwhile(booted: Project) -> None:
    booted.flag.write_text(json.dumps(json.loads(booted.flag.read_bytes())))
    app, smart = booted.app()
    planner = smart.planner(app)
    verdict = planner.by_flag()
    assert verdict.holds
    assert verdict.stale
    booted.write("B = 1\n\n@migration\ndef nothing(op: Operations) -> None:\n    print(B)\n", "b")
    planner.refresh(verdict)
    assert booted.boot().applied == ("nothing",)


def test_flag_whose_stats_are_cut_short_costs_a_question(booted: Project) -> None:
    content = booted.flag.read_bytes()
    for cut in (content[:-1], content[:-20], content[: content.index(b"\n")], content[: content.index(b"\n") + 9]):
        booted.flag.write_bytes(cut)
        report = booted.boot()
        assert report.decision == "verified"
        assert report.reason.startswith("the flag file is not one of db-smart (or was cut short)")


@pytest.mark.parametrize("more", [b" ", b"}", b',\n"stats": {}}', b"\n\0"])
def test_flag_with_more_behind_it_is_not_taken_as_it_is(booted: Project, more: bytes) -> None:
    with booted.flag.open("ab") as file:
        file.write(more)
    assert booted.boot().decision == ("verified" if more.strip() else "skipped")


@pytest.mark.parametrize(
    "again",
    ['"module": "other"', '"databases": {"gone": {"url": "x", "file": null, "database_id": "x", "applied": "x"}}'],
)
def test_flag_that_says_something_twice_is_damaged(booted: Project, again: str) -> None:
    booted.flag.write_text(f"{booted.flag.read_text()[:-1]}, {again}}}")
    report = booted.boot()
    assert report.decision == "verified"
    assert report.reason.startswith("the flag file is damaged; ")


def test_what_changed_is_named_file_by_file(booted: Project) -> None:
    path = booted.directory / booted.module / "a.py"
    path.write_text("A = 2\n")
    assert booted.boot(DB_SMART_BOOT="check").reason.startswith(f"{path} changed; ")
    path.unlink()
    assert booted.boot(DB_SMART_BOOT="check").reason.startswith("a.py is gone; ")
    path.with_name("c.py").write_text("C = 1\n")
    assert booted.boot(DB_SMART_BOOT="check").reason.startswith(f"{path.with_name('c.py')} is new (and 1 more); ")


# Broken flags


def test_missing_flag(path: Path) -> None:
    for missing in (path, path / "no" / "flag"):
        with pytest.raises(FlagInvalid, match="^there is no flag file$") as caught:
            flags.read(missing)
        assert caught.value.present is False


def test_file_where_the_directory_should_be(path: Path) -> None:
    path.touch()
    assert reason(path / "flag") == f"the flag file cannot be read ({os.strerror(errno.ENOTDIR)})"


@pytest.mark.parametrize("text", [b"", b"\n", b" \r\n\t"])
def test_empty_flag(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    assert reason(path) == "the flag file is empty"


def test_flag_cut_at_any_byte(path: Path) -> None:
    flags.write(path, FLAG)
    whole = path.read_bytes()
    path.write_bytes(b"")
    with path.open("r+b", buffering=0) as file:
        for byte in whole[:-1]:
            file.write(bytes([byte]))
            assert reason(path) == "the flag file is not one of db-smart (or was cut short)"
        file.write(whole[-1:])
    assert flags.read(path) == FLAG


def test_flag_of_the_original_program(path: Path) -> None:
    path.write_text("Migration completed on 2025-12-12")
    assert reason(path) == "the flag file is not one of db-smart (or was cut short)"


def test_flag_of_zeros(path: Path) -> None:
    """What some file systems leave after a power failure."""
    path.write_bytes(bytes(512))
    assert reason(path) == "the flag file is not one of db-smart (or was cut short)"


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=64))
@example(data=b"\xff\xfe\x00\x00")
@example(data=b"\xef\xbb\xbf")
@example(data=b'"\xff"')
@example(data=b"1" * 5000)
def test_random_bytes(shared: Path, data: bytes) -> None:
    shared.write_bytes(data)
    assert reason(shared) in (
        "the flag file is empty",
        "the flag file is not one of db-smart (or was cut short)",
        "the flag file belongs to another program",
    )


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(value=_JSON)
@example(value={"program": "flask-migrate", "format": FORMAT})
@example(value={"program": ["db-smart"], "format": FORMAT})
def test_json_of_another_program(shared: Path, value: object) -> None:
    shared.write_text(json.dumps(value))
    assert reason(shared) == "the flag file belongs to another program"


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"program": "db-smart", "format": 1, "roots": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
    ids=["unfinished", "another program's", "within a flag"],
)
def test_json_nested_too_deep(path: Path, text: str) -> None:
    path.write_text(text)
    assert reason(path) == "the flag file is not one of db-smart (or was cut short)"


@pytest.mark.parametrize("depth", [100, *range(700, 1100, 10)])
def test_json_nested_as_deep_as_it_is_read(path: Path, depth: int) -> None:
    path.write_text('{"program": "db-smart", "format": ' + "[" * depth + "]" * depth + "}")
    assert reason(path).startswith("the flag file ")


@pytest.mark.parametrize(
    ("found", "shown"), [(FORMAT + 1, str(FORMAT + 1)), (0, "0"), ("1", "'1'"), (None, "None"), ([1], r"\[1\]")]
)
def test_flag_of_another_format(path: Path, found: object, shown: str) -> None:
    path.write_text(json.dumps(content(format=found)))
    with pytest.raises(FlagInvalid, match=f"^the flag file has format {shown}, this release writes {FORMAT}$"):
        flags.read(path)


def test_flag_without_format(path: Path) -> None:
    path.write_text(json.dumps({key: value for key, value in content().items() if key != "format"}))
    assert reason(path) == f"the flag file has format None, this release writes {FORMAT}"


def test_format_that_is_truth_and_no_number(path: Path) -> None:
    path.write_text(json.dumps(content(format=True)))
    assert reason(path) == f"the flag file has format True, this release writes {FORMAT}"


def test_reason_is_short_although_the_format_is_long(path: Path) -> None:
    path.write_text(json.dumps(content(format="x" * 1_000_000)))
    assert len(reason(path)) < 500


@pytest.mark.parametrize("field", ["module", "roots", "stats", "digest", "racy", "databases"])
def test_flag_without_a_field(path: Path, field: str) -> None:
    path.write_text(json.dumps({key: value for key, value in content().items() if key != field}))
    assert reason(path) == "the flag file is damaged"


@pytest.mark.parametrize("field", ["url", "file", "database_id", "applied"])
def test_flag_without_a_field_of_a_database(path: Path, field: str) -> None:
    data = content()
    del data["databases"]["reports"][field]
    path.write_text(json.dumps(data))
    assert reason(path) == "the flag file is damaged"


WRONG_TYPES: dict[str, tuple[object, ...]] = {
    "module": (None, 1, True, ["a"], {"a": 1}),
    "roots": (None, 1, True, "a", {"a": 1}, [1], [None]),
    "stats": (None, 1, True, "a", [["a", [1, 2, 3]]], {"a": 1}, {"a": "123"}, {"a": ["1", 2, 3]}, {"a": None}),
    "digest": (None, 1, True, ["a"], {"a": 1}),
    "racy": (None, 0, 1, "", "false", [], {}),
    "databases": (None, 1, True, "a", [], {}, {"a": None}, {"a": 1}, {"a": "b"}, {"a": []}, {"a": {}}),
}


@pytest.mark.parametrize(
    ("field", "value"),
    [pytest.param(field, value, id=f"{field} {value!r}") for field, values in WRONG_TYPES.items() for value in values],
)
def test_field_of_another_type(path: Path, field: str, value: object) -> None:
    path.write_text(json.dumps(content(**{field: value})))
    assert reason(path) == "the flag file is damaged"


_WRONG_NUMBERS: tuple[object, ...] = (None, "7", "x", 7.5, True, [7], {}, 1e999)
WRONG_RECORDS: dict[str, tuple[object, ...]] = {
    "url": (None, 1, True, ["a"], {"a": 1}),
    "file": (0, 1, True, "", "a", [], ["a"], *({"inode": number} for number in _WRONG_NUMBERS)),
    "database_id": (None, 1, True, ["a"], {"a": 1}),
    "applied": (None, 1, True, ["a"], {"a": 1}),
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(field, value, id=f"{field} {value!r}")
        for field, values in WRONG_RECORDS.items()
        for value in values
    ],
)
def test_field_of_another_type_in_a_database(path: Path, field: str, value: object) -> None:
    data = content()
    data["databases"]["default"][field] = value
    path.write_text(json.dumps(data))
    assert reason(path) == "the flag file is damaged"


def _places(value: object, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _places(child, (*place, key))


@settings(max_examples=200, deadline=None)
@given(place=st.sampled_from([place for place in _places(content()) if place]), value=_JSON)
def test_json_anywhere_in_a_flag_is_refused_or_of_the_right_type(
    shared: Path, place: tuple[Any, ...], value: object
) -> None:
    data: Any = content()
    target = data
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    shared.write_text(json.dumps(data))
    try:
        flag = flags.read(shared)
    except FlagInvalid:
        return
    assert flag.stats is not None
    assert all(type(text) is str for text in (flag.module, flag.digest, *flag.roots, *flag.stats, *flag.databases))
    assert type(flag.racy) is bool
    assert all(type(number) is int for stats in flag.stats.values() for number in stats)
    for record in flag.databases.values():
        assert all(type(text) is str for text in (record.url, record.database_id, record.applied))
        assert all(type(number) is int for number in (record.file or {}).values())


def test_flag_larger_than_ours_is_refused_unread(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100 * 1024 * 1024)
    tracemalloc.start()
    try:
        assert reason(path) == "the flag file is too large to be ours"
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    finally:
        tracemalloc.stop()


def test_flag_as_large_as_it_is_read_costs_little_memory(path: Path) -> None:
    head = '{"program": "db-smart", "format": 1, "roots": ['
    path.write_text(head + "[]," * ((MAX_BYTES - len(head) - 4) // 3) + "[]]}")
    assert MAX_BYTES - 3 <= path.stat().st_size <= MAX_BYTES
    tracemalloc.start()
    try:
        assert reason(path) == "the flag file is damaged"
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_flag_that_would_be_too_large_is_not_written(path: Path) -> None:
    flags.write(path, FLAG)
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        flags.write(path, changed(FLAG, digest="d" * MAX_BYTES))
    assert flags.read(path) == FLAG
    assert list(path.parent.iterdir()) == [path]


def test_flag_of_ten_thousand_files_is_not_too_large(path: Path) -> None:
    stats = {f"migrations/{number:08}_of_a_long_name.py": [10**18, 10**18, 10**6] for number in range(1000)}
    flags.write(path, changed(FLAG, stats=stats))
    assert flags.read(path).stats == stats
    assert path.stat().st_size * 10 < MAX_BYTES


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not open a directory at all")
def test_directory(path: Path) -> None:
    path.mkdir()
    assert reason(path) == "the flag is a directory"


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_link_to_itself(path: Path) -> None:
    path.symlink_to(path)
    with pytest.raises(FlagInvalid, match="the flag file cannot be read"):
        flags.read(path)


@pytest.mark.skipif(sys.platform == "win32", reason="modes of files")
def test_unreadable_flag() -> None:
    script = f"""
import sys
from pathlib import Path
from aurum_harmony.db_smart.boot import flag
{BECOME_NOBODY}
try:
    flag.read(Path(sys.argv[1]))
except flag.FlagInvalid as error:
    print(error.present, error)
"""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        path = Path(name, "flag")
        flags.write(path, FLAG)
        path.chmod(0)
        assert run_python(script, str(path)) == "True the flag file cannot be read (Permission denied)\n"


# Writing


def test_write_makes_missing_directories(path: Path) -> None:
    deep = path / "a" / "b" / "flag"
    flags.write(deep, FLAG)
    assert flags.read(deep) == FLAG
    assert list(deep.parent.iterdir()) == [deep]


def test_write_replaces_a_broken_flag(path: Path) -> None:
    path.write_text("Migration completed on 2025-12-12")
    flags.write(path, FLAG)
    assert flags.read(path) == FLAG


def test_write_replaces_the_file_and_not_its_content(path: Path) -> None:
    flags.write(path, FLAG)
    with path.open("rb") as reader:
        flags.write(path, changed(FLAG, digest="d2"))
        assert json.loads(reader.read())["digest"] == "d1"
    assert flags.read(path).digest == "d2"


def test_failing_replace_leaves_the_old_flag_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags.write(path, FLAG)

    def fail(source: object, target: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        flags.write(path, changed(FLAG, digest="d2"))
    assert flags.read(path) == FLAG
    assert list(path.parent.iterdir()) == [path]


def test_write_onto_a_directory_fails_and_leaves_nothing(path: Path) -> None:
    path.mkdir()
    with pytest.raises(OSError, match="flag"):
        flags.write(path, FLAG)
    assert list(path.parent.iterdir()) == [path]
    assert list(path.iterdir()) == []


def test_write_below_a_file_fails_and_leaves_nothing(path: Path) -> None:
    path.write_text("x")
    with pytest.raises(OSError, match="flag"):
        flags.write(path / "flag", FLAG)
    assert path.read_text() == "x"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of processes")
def test_full_disk_leaves_the_old_flag_and_nothing_else(path: Path) -> None:
    flags.write(path, FLAG)
    script = """
import resource, sys
from pathlib import Path
from aurum_harmony.db_smart.boot import flag
path = Path(sys.argv[1])
found = flag.read(path)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    flag.write(path, flag.Flag(**{**vars(found), "digest": "d2"}))
except OSError as error:
    print(error.strerror)
"""
    assert run_python(script, str(path)) == os.strerror(errno.EFBIG) + "\n"
    assert flags.read(path) == FLAG
    assert list(path.parent.iterdir()) == [path]


def test_readers_never_see_half_a_flag(path: Path) -> None:
    two = changed(FLAG, digest="d2", stats={f"{n}.py": [1, 2, 3] for n in range(2000)})
    flags.write(path, FLAG)
    done = threading.Event()

    def write() -> None:
        try:
            for _ in range(30):
                flags.write(path, two)
                flags.write(path, FLAG)
        finally:
            done.set()

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = set()
    while not done.is_set():
        seen.add(flags.read(path).digest)
    for writer in writers:
        writer.join()
    assert seen <= {"d1", "d2"}
    assert flags.read(path) == FLAG
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="modes of files")
def test_mode_of_the_file_is_that_of_the_process(path: Path) -> None:
    before = os.umask(0o027)
    try:
        flags.write(path, FLAG)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


# Removing


def test_remove_tells_that_there_was_a_flag(path: Path) -> None:
    flags.write(path, FLAG)
    assert flags.remove(path) is True
    assert not path.exists()


def test_remove_tells_that_there_was_none(path: Path) -> None:
    assert flags.remove(path) is False
    assert flags.remove(path / "no" / "flag") is False


def test_remove_of_a_directory_fails(path: Path) -> None:
    path.mkdir()
    with pytest.raises(OSError, match="flag"):
        flags.remove(path)
    assert path.is_dir()


# Secrets


def test_flag_of_a_boot_holds_no_secret_of_the_url(make_project: Callable[..., Project], tmp_path: Path) -> None:
    url = f"sqlite:///file:{tmp_path}/app.db?uri=true&password=s3cret&access_token=s3cret"
    project = make_project(url)
    project.write("@migration\ndef migrate_nothing(op):\n    pass\n")
    assert project.boot().decision == "migrated"
    text = project.flag.read_text()
    assert "app.db" in text
    assert "s3cret" not in text
    assert project.boot().decision == "skipped"
