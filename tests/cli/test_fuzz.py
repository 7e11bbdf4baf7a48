"""Whatever a person writes, the command ends with a result or one line that says what is wrong, not a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.capacity import card_files, measure_rate, prove
from pagedvid.cli import calibrate, generate, profile, serve
from pagedvid.cli.main import main
from pagedvid.errors import CapacityError
from tests.cli.fuzz_inputs import READERS, Case, assignments, command_lines, file_changes, valid_files

MAX_LINE_CHARS = 1000
MAX_SECONDS = 60
FILES = valid_files(card_files.config_folder("models"))
PRESETS = card_files.config_folder("presets")


@pytest.fixture(autouse=True, scope="module")
def no_real_work() -> Iterator[None]:
    """Engines, proofs, measurements and calibrations end at once, as when memory is short; one model card is enough."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise CapacityError("the stand-in has no memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "create_engine", refuse)
        patch.setattr(calibrate, "measure", refuse)
        patch.setattr(profile, "measure", refuse)
        patch.setattr(prove, "prove", refuse)
        patch.setattr(measure_rate, "measured_rate", refuse)
        patch.setattr(serve, "make_sessions", refuse)
        patch.setattr(card_files, "config_folder", lambda kind: Path("cards") if kind == "models" else PRESETS)
        yield


def check(case: Case) -> int:
    """Runs a case in a folder with all files; returns the exit code."""
    out, err = io.StringIO(), io.StringIO()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        for name, content in {**FILES, **case.files}.items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        os.chdir(folder)
        started = time.monotonic()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(case.argv)
        finally:
            os.chdir(before)
    assert time.monotonic() - started < MAX_SECONDS
    lines = err.getvalue().splitlines()
    assert code in (0, 1, 2)
    if code == 2:
        assert len(lines) == 1 and lines[0].startswith("pagedvid: error: "), lines
        assert len(lines[0]) < MAX_LINE_CHARS and lines[0].isprintable()
    assert not any(line.startswith("Traceback") for line in lines)
    return code


@given(command_lines())
def test_command_lines(case: Case) -> None:
    check(case)


@given(assignments())
def test_assignments(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
def test_files(name: str, data: st.DataObject) -> None:
    check(data.draw(file_changes(name, FILES)))


def test_unchanged_files_are_read() -> None:
    """Otherwise the tests above would only ever see the first error."""
    codes = [check(Case(argv)) for argvs in READERS.values() for argv in argvs]
    assert codes == [0, 0, 0, 2, 2, 0, 0, 0, 0]  # the stand-in for calibrations and profiles refuses
