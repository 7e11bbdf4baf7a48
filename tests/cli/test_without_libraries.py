"""What works without the libraries that only some commands need, and what is said where one is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_NEEDED = ("av", "rich", "PIL", "matplotlib", "transformers", "diffusers", "flashdreams", "gguf", "triton")
BLOCK = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""
IMPORT_ALL = """
import importlib, pkgutil
import pagedvid
for name in pagedvid.__all__:
    getattr(pagedvid, name)
for module in pkgutil.walk_packages(pagedvid.__path__, "pagedvid."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(module.name, error.name.partition(".")[0])
    except pagedvid.ConfigError:
        print(module.name, "its-engine")
"""
COMMAND = "from pagedvid.cli.main import main; sys.exit(main(sys.argv[1:]))"


def run_without(names: tuple[str, ...], program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a program in which these libraries cannot be imported."""
    command = [sys.executable, "-c", BLOCK.format(names=names) + program, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_every_module_but_the_adapters_and_the_kernels_can_be_imported() -> None:
    done = run_without(NOT_NEEDED, IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    missing = dict(line.split() for line in done.stdout.splitlines())
    assert {name: library for name, library in missing.items() if library != "triton"} == {
        "pagedvid.cli.bars": "rich",
        "pagedvid.integrations.diffusers_cache_hook": "diffusers",
        "pagedvid.integrations.lightx2v_classes": "lightx2v",
        "pagedvid.integrations.vllm_omni.lingbot": "its-engine",
        "pagedvid.integrations.vllm_omni.runner": "its-engine",
        "pagedvid.output.sheet": "PIL",
        "pagedvid.quality.sheet": "PIL",
    }
    rooms = {name.split(".")[1] for name, library in missing.items() if library == "triton"}
    assert rooms <= {"rotary", "codecs", "correction", "attention"}  # kernels, and who calls them on a GPU


def test_env_needs_none_of_them() -> None:
    done = run_without(NOT_NEEDED, COMMAND, "env", "--device", "cpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert "triton is not installed (pip install triton)" in done.stdout
    assert "  torch-cpu        yes" in done.stdout


@pytest.mark.parametrize("words", [("config", "show"), ("models",), ("generate", "--help")])
def test_commands_that_make_no_video_need_none_of_them(words: tuple[str, ...]) -> None:
    done = run_without((*NOT_NEEDED, "torch"), COMMAND, *words)
    assert (done.returncode, done.stderr) == (0, "")


def test_generate_says_at_once_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a large red circle moving left on a black background\n")
    done = run_without(("av",), COMMAND, "generate", "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "pagedvid: error: videos are written and read with the library PyAV (No module named 'av'): pip install av\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_plan_needs_no_video_library(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a large red circle moving left on a black background\n")
    done = run_without(NOT_NEEDED, COMMAND, "generate", "--plan", "--prompts", tmp_path / "prompts.txt")
    assert (done.returncode, done.stderr) == (0, "")


def test_without_rich_and_pillow_videos_are_made_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a large red circle moving left on a black background\n")
    arguments = ("--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out", "--frames", 4, "--memory", "4MiB")
    arguments += ("--set", "engine.denoise_steps=1", "--set", "generate.threads=1")
    done = run_without(("rich", "PIL"), COMMAND, "generate", *arguments)
    assert done.returncode == 0, done.stderr
    assert "sheet.png could not be written: it needs Pillow (No module named 'PIL'): pip install pillow" in done.stderr
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 1
