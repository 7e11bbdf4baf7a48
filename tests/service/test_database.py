"""The SQLite file: transactions, and errors by name."""

from __future__ import annotations

import sqlite3

import pytest

from pagedvid.errors import PromptError
from pagedvid.service.database import VERSION, Database
from pagedvid.service.errors import StorageError


@pytest.fixture
def database(tmp_path):
    one = Database(tmp_path / "a.sqlite")
    yield one
    one.close()


def settings(database) -> list[str]:
    return [row["value"] for row in database.read("SELECT value FROM settings")]


def test_it_is_durable(database):
    ((mode,),) = database.read("PRAGMA journal_mode")
    ((synchronous,),) = database.read("PRAGMA synchronous")
    ((version,),) = database.read("PRAGMA user_version")
    assert (mode, synchronous, version) == ("wal", 2, VERSION)  # 2: FULL


def test_a_block_that_fails_changes_nothing_nor_does_what_is_inside_it(database):
    with pytest.raises(ZeroDivisionError), database.change() as outer:
        outer.execute("INSERT INTO settings VALUES ('a')")
        with database.change() as inner:
            inner.execute("INSERT INTO settings VALUES ('b')")
        1 / 0  # noqa: B018
    assert settings(database) == []
    with database.change() as connection:
        connection.execute("INSERT INTO settings VALUES ('c')")
    assert settings(database) == ["c"]


def test_a_full_disk_is_named_and_nothing_has_changed(database):
    ((pages,),) = database.read("PRAGMA page_count")
    database.read(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match="full; free some space"), database.change() as connection:
        connection.execute("INSERT INTO settings VALUES (?)", ("x" * 100_000,))
    assert settings(database) == []
    database.read(f"PRAGMA max_page_count = {pages + 100}")
    with database.change() as connection:
        connection.execute("INSERT INTO settings VALUES (?)", ("x" * 100_000,))
    assert len(settings(database)) == 1


def test_a_file_in_use_is_named(database, tmp_path, monkeypatch):
    monkeypatch.setattr("pagedvid.service.database._BUSY_SECONDS", 0.01)
    other = Database(tmp_path / "a.sqlite")
    with database.change() as connection:
        connection.execute("INSERT INTO settings VALUES ('a')")
        with pytest.raises(StorageError, match="locked; another process works on it"), other.change():
            pass
    other.close()


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "a.sqlite"
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(StorageError, match="the file is damaged"):
        Database(path)
    with pytest.raises(StorageError, match="check the disk and the rights"):
        Database(tmp_path / "none" / "a.sqlite")
    other = tmp_path / "b.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    with pytest.raises(StorageError, match="use another data folder, or the pagedvid that made this one"):
        Database(other)


def test_text_that_is_no_text(database):
    with pytest.raises(PromptError, match="half of a surrogate pair"), database.change() as connection:
        connection.execute("INSERT INTO settings VALUES (?)", ("\ud800",))
