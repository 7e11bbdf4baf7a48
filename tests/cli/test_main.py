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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["env", "--device", "foo"], "argument --device: 'foo' is not cpu, cuda or cuda:N"),
        (["env", "--head-dim", "\u0663"], "argument --head-dim: '\u0663' is not a whole number from 1 to 4096"),
        (["config", "show", "--config", ""], "argument --config: the name is empty"),
        (["capacity", "--model=--"], "argument 2: --model=-- has no value"),
        (["config", "show", "--seed", "9" * 5000], "allowed is a whole number from 0 to 9223372036854775807"),
        (["config", "show", "--seed", str(2**63)], "allowed is a whole number from 0 to 9223372036854775807"),
        (
            ["config", "show", "--set", "generate.seed=!!int x"],
            "--set generate.seed: '!!int x' cannot be read as a value",
        ),
        (["config", "show", "--set", "cache.codec=klt\u0662"], "cache.codec is 'klt\u0662'"),
        (["config", "show", "--set", 'model.weights="a\\0"'], "model.weights is 'a\\x00'; allowed is null, or a path"),
        (["config", "show", "--memory", "9" * 400], "allowed is a size above zero and at most 1024TiB"),
        (["config", "show", "--frames", "1000000000000"], "allowed is a whole number from 1 to 100000"),
        (["config", "show", "--set", "cache.recent_chunks=100001"], "or a whole number from 1 to 100000"),
        (["config", "show", "--" + "x" * 5000], "unrecognized arguments"),
    ],
)
def test_wrong_words_are_one_short_line(command, words, message):
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert err.startswith("pagedvid: error: ") and err.count("\n") == 1 and len(err) < 700
    assert message in err


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
