"""The command itself: help, version, and how it ends."""

import subprocess
import sys

import pytest

from pagedvid import __version__
from pagedvid.cli import config_show


def test_version(command):
    assert command("--version")[:2] == (0, f"pagedvid {__version__}\n")


@pytest.mark.parametrize("argv", [["--help"], ["generate", "--help"], ["config", "show", "--help"]])
def test_help_fits_a_terminal(command, argv, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = command(*argv)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80


def test_no_command(command):
    code, _, err = command()
    assert code == 2
    assert err == "pagedvid: error: the following arguments are required: COMMAND (see pagedvid --help)\n"


def test_help_and_wrong_input_do_not_wait_for_pytorch():
    probe = "import sys; from pagedvid.cli import main; main.build_parser(); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", probe], text=True) == "False\n"


def test_interrupt_outside_the_loop(command, monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(config_show, "resolve_options", interrupted)
    assert command("config", "show") == (130, "", "pagedvid: error: interrupted\n")


def test_a_reader_that_goes_away_is_no_error():
    words = [sys.executable, "-m", "pagedvid", "config", "show"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
