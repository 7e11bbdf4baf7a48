"""The command with a terminal that cannot show every letter, with closed streams, and on a full disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path("/dev/full")
SLOW_RUN = Path(__file__).with_name("slow_run.py")
SETTINGS = "config show"
WRONG = "config show --frames x"


def shell(line: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `pagedvid` with the words and redirections of a shell line."""
    (tmp_path / "red.txt").write_text("red\n")
    words = f"{sys.executable} {SLOW_RUN} 0 0 {line}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    return subprocess.run(words, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)


def test_letters_that_a_terminal_lacks(tmp_path):
    ended = shell("generate --prompts red.txt --out 视频", tmp_path, PYTHONIOENCODING="ascii")
    assert ended.returncode == 0
    assert "files   \\u89c6\\u9891/" in ended.stdout
    assert (tmp_path / "视频" / "000-red.mp4").is_file()


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_a_full_disk(tmp_path):
    message = "pagedvid: error: the output could not be written: No space left on device\n"
    for line in (SETTINGS, "--help"):
        ended = shell(f"{line} > /dev/full", tmp_path, PYTHONUNBUFFERED="")
        assert (ended.returncode, ended.stderr) == (1, message)
    assert shell(f"{WRONG} 2> /dev/full", tmp_path).returncode == 2
    ended = shell("generate --prompts red.txt --out videos 2> /dev/full", tmp_path)
    assert ended.returncode == 0 and "videos  1 done" in ended.stdout


def test_closed_streams(tmp_path):
    assert shell(f"{SETTINGS} <&- >&- 2>&-", tmp_path).returncode == 0
    ended = shell(f"{WRONG} 2>&-", tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    ended = shell("generate --prompts red.txt --out videos <&- >&- 2>&-", tmp_path)
    assert ended.returncode == 0
    assert {path.name for path in (tmp_path / "videos").iterdir()} == {
        *("000-red.mp4", "000-red.json", "manifest.jsonl", "sheet.png")
    }


def test_words_that_are_no_text(command):
    code, out, err = command("generate", "--prompts", "caf\udce9.txt")
    assert (code, out) == (2, "")
    assert err.startswith("pagedvid: error: argument 3: 'caf\\udce9.txt' contains half of a surrogate pair (U+DCE9)")


def test_a_path_that_no_file_can_have(command, tmp_path):
    code, _, err = command("generate", "--plan", "--prompts", "none.txt", "--weights", "w" * 5000)
    assert code == 2
    assert err.startswith("pagedvid: error: www") and err.endswith(
        "File name too long; give the path of a file or folder\n"
    )
    assert len(err) < 400
