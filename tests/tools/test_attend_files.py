"""How many files one `attend` of the demo model goes through: a bound that only falls."""

from __future__ import annotations

import pytest

from attend_files import attend_files

MOST_FILES = {"denoise": 9, "commit": 19}


@pytest.mark.parametrize("codec", ["int2", "klt1.5/klt3"])
def test_attend_goes_through_few_files(codec: str) -> None:
    for name, crossed in attend_files(codec).items():
        assert len(crossed.files) <= MOST_FILES[name], crossed.files
        assert {"attention/step.py", "attention/history.py"} <= set(crossed.files)
