"""`pagedvid capacity` and `pagedvid models` on the command line."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from pagedvid.capacity import plot, sizing
from pagedvid.capacity.card_files import find_card
from pagedvid.capacity.cards import Resolution
from pagedvid.capacity.look_back import SlidingLookBack
from pagedvid.capacity.sizing import CODEC_CHOICES, Question, answer, streams_over_memory
from pagedvid.units import GIB

SELF_FORCING = ("capacity", "--model", "self-forcing")


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text('{"start_seconds": 0, "length_seconds": 60}\n' * 3)
    return path


def table(out):
    """Rows of the table by codec."""
    after = out.split("\n\n")[1].splitlines()
    return {line.split()[0]: line.split()[1:] for line in after[1:]}


def test_self_forcing_in_60_gib(command):
    code, out, err = command(*SELF_FORCING, "--memory", "60GiB", "--weights", "none")
    assert (code, err) == (0, "")
    rows = table(out)
    assert {name: rows[name][6] for name in ("bf16", "int4", "int2")} == {"bf16": "10", "int4": "37", "int2": "74"}
    assert rows["int2"][0] == "2.28" and rows["int2"][5] == "7.03x"
    assert "frame    832x480 = 1560 tokens; 4 latent frames = 1 s of video" in out
    assert max(map(len, out.splitlines())) <= 80


def test_any_codecs_become_rows(command):
    code, out, err = command(*SELF_FORCING, "--memory", "60GiB", "--weights", "none", "--kv", "int4,klt2,int4/int2")
    assert (code, err) == (0, "")
    rows = table(out)
    assert list(rows) == ["int4", "klt2", "int4/int2"]
    bits = {name: float(cells[0]) for name, cells in rows.items()}
    assert bits["klt2"] == pytest.approx(2.02, abs=0.01)
    assert bits["int4/int2"] == pytest.approx((bits["int4"] + 2.28) / 2, abs=0.01)
    streams = {name: int(cells[6]) for name, cells in rows.items()}
    assert streams["int4"] < streams["int4/int2"] < streams["klt2"]
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("model", ["magi-1-4.5b", "hy-worldplay-8b", "longcat-13.6b", "skyreels-v2-1.3b", "demo"])
def test_every_kind_of_model_fits_a_terminal(command, model):
    code, out, err = command("capacity", "--model", model, "--gpu", "h200", "--reserve", "4GiB")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80


def test_json_and_csv_say_the_same(command):
    words = (*SELF_FORCING, "--gpu", "h100", "--kv", "int4,int2", "--window", "1+6", "--branches", 2)
    answer = json.loads(command(*words, "--format", "json")[1])
    rows = list(csv.DictReader(io.StringIO(command(*words, "--format", "csv")[1])))
    assert [row["codec"] for row in rows] == [row["codec"] for row in answer["rows"]] == ["int4", "int2"]
    assert [int(row["stream_bytes"]) for row in rows] == [row["stream_bytes"] for row in answer["rows"]]
    assert (answer["window"], answer["num_branches"], answer["memory_bytes"]) == ("1+6", 2, int(78.6 * 2**30))


def test_presets_become_rows(command, tmp_path, monkeypatch):
    from pagedvid.capacity import card_files

    (tmp_path / "careful.yaml").write_text("cache: {codec: int4, sink_codec: int8}\n")
    real = card_files.config_folder
    monkeypatch.setattr(card_files, "config_folder", lambda kind: tmp_path if kind == "presets" else real(kind))
    assert "careful" in table(command(*SELF_FORCING)[1])


def test_targets(command):
    code, out, err = command(*SELF_FORCING, "--memory", "60GiB", "--weights", "none", "--target", "streams=30")
    assert (code, err) == (0, "")
    assert "int4 (4.55 bits) is the finest codec that reaches it" in out
    assert table(out)["int2"][2:] == ["74", "yes", "0+16", "12.0", "s"]
    plain = ("--kv", "bf16,int8,int4,int2")
    out = command(*SELF_FORCING, "--memory", "60GiB", "--target", "streams=100", *plain)[1]
    assert "no codec reaches it with the window 0+6; int2 does with 0+" in out
    words = (*SELF_FORCING, "--memory", "60GiB", "--target", "seconds=60", "--target", "streams=3", "--format", "json")
    answer = json.loads(command(*words)[1])
    assert (answer["window"], answer["finest_codec"]) == ("0+80", "int4")
    assert max(map(len, out.splitlines())) <= 80


def test_sustained_streams_from_a_given_rate(command):
    words = (*SELF_FORCING, "--gpu", "h100", "--sustain", "16fps", "--tokens-per-second", "2000000/1000000")
    code, out, err = command(*words)
    assert (code, err) == (0, "")
    assert "2,000,000 tokens/s in denoise steps, 1,000,000 in commit passes" in out
    assert "keeps up with 48 streams at 16 fps" in out  # 0.9 / (4 x 1560 x (4 / 2e6 + 1 / 1e6))
    rows = table(out)
    assert rows["bf16"][2:] == ["13", "13", "memory"]
    assert rows["int2"][2:] == ["94", "48", "compute"]
    assert max(map(len, out.splitlines())) <= 80
    facts = json.loads(command(*words, "--kv", "bf16,int2", "--format", "json")[1])
    assert facts["stream_share"] == pytest.approx(0.01872)
    assert (facts["sustain_frames_per_second"], facts["num_streams_by_pace"]) == (16, 48)
    assert [row["num_sustained_streams"] for row in facts["rows"]] == [13, 48]
    rows = csv.DictReader(io.StringIO(command(*words, "--kv", "bf16,int2", "--format", "csv")[1]))
    assert [row["num_sustained_streams"] for row in rows] == ["13", "48"]


@pytest.mark.parametrize("model", ["magi-1-4.5b", "hy-worldplay-8b", "longcat-13.6b", "skyreels-v2-1.3b", "demo"])
def test_sustained_streams_of_every_kind_of_model_fit_a_terminal(command, model):
    words = ("--gpu", "h200", "--sustain", "23.976fps", "--tokens-per-second", "123456.7/1000000000000")
    code, out, err = command("capacity", "--model", model, *words)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80


def test_a_device_that_sustains_no_stream_says_which_speed_it_does(command):
    out = command(*SELF_FORCING, "--gpu", "h100", "--sustain", "16", "--tokens-per-second", "10000")[1]
    assert "keeps up with 4.62 fps at most, with a single stream" in out
    assert table(out)["int2"][2:] == ["94", "0", "compute"]


def test_sustained_streams_measured_here(command):
    words = (
        "capacity",
        "--model",
        "demo",
        "--memory",
        "24MiB",
        "--window",
        "0+1",
        "--kv",
        "int2",
        "--sustain",
        "12fps",
    )
    code, out, err = command(*words)
    assert (code, err) == (0, "")
    assert "measured here with 4 streams on" in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_proof(command):
    words = ("capacity", "--model", "demo", "--memory", "9MiB", "--weights", "none", "--kv", "int4", "--prove")
    code, out, err = command(*words)
    assert (code, err) == (0, "")
    assert "predicted = measured" in out and "WRONG" not in out
    assert max(map(len, out.splitlines())) <= 80
    answer = json.loads(command(*words, "--format", "json")[1])
    assert answer["agrees"] and answer["num_layers"] == 6
    assert "extrapolated to all 6 layers: " in command(*words, "--scale", "0.5")[1]


def test_a_proof_that_fails(command, monkeypatch):
    from pagedvid.capacity import prove

    growing = count()
    monkeypatch.setattr(prove, "live_bytes", lambda device: 10**9 * next(growing))
    code, out, _ = command("capacity", "--model", "demo", "--memory", "9MiB", "--weights", "none", "--prove")
    assert code == 1
    assert "DISAGREE" in out and "WRONG" in out


def test_a_trace(command, lines):
    words = (*SELF_FORCING, "--gpu", "l4", "--kv", "bf16", "--trace", lines, "--gpus", 2, "--concurrent", 1)
    code, out, err = command(*words)
    assert (code, err) == (0, "")
    assert "admitted     3, 1 of them after waiting" in out
    assert max(map(len, out.splitlines())) <= 80
    answer = json.loads(command(*words, "--max-wait", 30, "--format", "json")[1])
    assert (answer["num_admitted"], answer["num_rejected_waiting"]) == (2, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "self-forcng"], "unknown model 'self-forcng'; did you mean self-forcing"),
        (["--resolution", "850x480"], "the nearest is 848x480"),
        (["--resolution", "huge"], "resolution is 'huge'"),
        (["--resolution", "9999999x480"], "from 1 to 65536 pixels"),
        (["--memory", "2GiB"], "the bf16 weights of self-forcing take 2.65 GiB"),
        (["--memory", "0"], "--memory is '0'; allowed is a size above zero"),
        (["--memory", "9999999999TiB"], "at most 1024TiB"),
        (["--memory", "lots"], "'lots' is not a size"),
        (["--memory", "3GiB"], "no stream of self-forcing at 832x480"),
        (["--memory", "60GiB", "--gpu", "h100"], "not allowed with argument"),
        (["--gpu", "h1000"], "unknown GPU 'h1000' - did you mean h100"),
        (
            ["--weights", "int4"],
            "--weights is 'int4'; allowed for self-forcing are bf16, fp8, offload, fp8-offload, none",
        ),
        (["--window", "6"], "window is '6'"),
        (["--window", "4s", "--target", "seconds=3"], "both set the window"),
        (["--target", "streams=many"], "--target streams=many"),
        (["--target", "streams=1000000"], "no codec reaches 1000000 stream(s)"),
        (["--kv", "int3"], "--kv names 'int3'; allowed are bf16, int8, int4, int2, mixed, "),
        (["--kv", "int4/int3"], "any codec (fp32, bf16, int8, int4, int2 (with -pair"),
        (["--kv", "int2,int4/x"], "--kv names 'int4/x'"),
        (
            ["--model", "demo", "--memory", "24MiB", "--weights", "none", "--kv", "klt2", "--prove"],
            "klt2 needs tables of the model",
        ),
        (["--branches", "0"], "'0' is not a whole number"),
        (["--scale", "0.5"], "--scale has no effect without --prove"),
        (["--device", "cpu"], "--device has no effect without --prove"),
        (["--device", "cpu"], "--device has no effect without --prove or --sustain"),
        (["--tokens-per-second", "5"], "--tokens-per-second has no effect without --sustain"),
        (["--sustain", "16hz"], "argument --sustain: '16hz' is not a speed; write the frames per second"),
        (["--sustain", ""], "argument --sustain: '' is not a speed"),
        (["--sustain", "16fps", "--tokens-per-second", "5/x"], "argument --tokens-per-second: '5/x' is not a rate"),
        (["--sustain", "16fps"], "self-forcing cannot be measured here"),
        (["--sustain", "16fps", "--prove"], "--prove and --sustain cannot be combined"),
        (["--sustain", "16fps", "--trace", "x"], "--trace and --sustain cannot be combined"),
        (["--sustain", "16fps", "--target", "streams=3"], "--sustain and --target cannot be combined"),
        (["--max-wait", "5"], "--max-wait has no effect without --trace"),
        (["--prove", "--trace", "x"], "--prove and --trace cannot be combined"),
        (["--prove", "--target", "streams=3"], "--prove and --target cannot be combined"),
        (["--prove", "--scale", "2"], "'2' is not a number from 0.001 to 1"),
        (["--prove", "--scale", "nan"], "'nan' is not a number from 0.001 to 1"),
        (["--prove", "--kv", "int2,int4"], "--prove takes one choice of codecs"),
        (["--prove", "--memory", "100TiB"], "the proof would allocate"),
        (["--prove", "--device", "cuda:77"], "device is 'cuda:77'"),
        (["--trace", "nowhere.jsonl"], "trace nowhere.jsonl cannot be read"),
        (["--trace", "/dev/zero"], "trace /dev/zero cannot be read: it is a device or a pipe"),
        (["--window", ""], "window is ''"),
        (["--resolution", ""], "resolution is ''"),
        (["--gpu", ""], "unknown GPU ''"),
        (["--memory", ""], "'' is not a size"),
        (["--models", ""], "argument --models: the name is empty"),
        (["--resolution", "9" * 5000 + "x16"], "write WIDTHxHEIGHT in pixels"),
        (["--target", "streams=" + "9" * 5000], "allowed is a whole number from 1 to 1000000000"),
        (["--target", "seconds=\u0663"], "allowed is a number from 0.001 to 10000000"),
        (["--target", "seconds=1_0"], "allowed is a number from 0.001 to 10000000"),
        (["--reserve", "9" * 400], "is not a size"),
        (["--max-wait", "inf"], "'inf' is not a number from 0 to 1000000000"),
        (["--gpus", "10001"], "'10001' is not a whole number from 1 to 10000"),
        (["--model", "m" * 5000 + ".yaml"], "File name too long"),
        (["--plot", "picture.txt"], "allowed endings are .png, .svg, .pdf"),
    ],
)
def test_bad_input_is_one_line_and_code_2(command, words, message):
    words = words if "--model" in words else ["--model", "self-forcing", *words]
    code, out, err = command("capacity", *words)
    assert (code, out) == (2, "")
    assert err.startswith("pagedvid: error: ") and err.count("\n") == 1
    assert message in err


def test_a_malformed_trace_line_is_named(command, lines):
    lines.write_text(lines.read_text() + '{"start_seconds": "now"}\n')
    code, _, err = command(*SELF_FORCING, "--trace", lines)
    assert code == 2
    assert "trace.jsonl:4: start_seconds is 'now'" in err


def test_models_are_listed_with_ones_own(command, tmp_path):
    shipped = Path(__file__).parents[2] / "configs" / "models" / "self-forcing.yaml"
    (tmp_path / "mine.yaml").write_text(shipped.read_text().replace("name: self-forcing", "name: mine"))
    code, out, err = command("models", "--models", tmp_path)
    assert (code, err) == (0, "")
    names = [line.split()[0] for line in out.split("\n\n")[0].splitlines()[1:]]
    assert len(names) == 15 and {"mine", "demo", "walk"} <= set(names)
    assert max(map(len, out.splitlines())) <= 80
    words = ("models", "--models", tmp_path, "--format")
    rows = {row["model"]: row for row in json.loads(command(*words, "json")[1])["rows"]}
    assert rows["mine"]["bf16_bytes_per_second"] == 4 * 1560 * 184_320
    assert len(list(csv.DictReader(io.StringIO(command(*words, "csv")[1])))) == 15
    assert command("capacity", "--models", tmp_path, "--model", "mine")[0] == 0


def test_a_plot(command, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "streams.png"
    assert command(*SELF_FORCING, "--gpu", "h100", "--plot", path)[0] == 0
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
    code, _, err = command(*SELF_FORCING, "--plot", tmp_path / "none" / "streams.png")
    assert code == 2 and "cannot be written" in err


def test_a_plot_counts_what_the_table_counts():
    question = Question(find_card("self-forcing"), Resolution(832, 480), SlidingLookBack(0, 6), 80 * GIB, "bf16", GIB)
    memories = [GIB, 20 * GIB, 80 * GIB]
    for name, codecs in CODEC_CHOICES.items():
        expected = [answer(replace(question, memory_bytes=memory), name, codecs).num_streams for memory in memories]
        assert streams_over_memory(question, codecs, memories) == expected
        assert 0 == expected[0] < expected[1] < expected[2]


def test_a_plot_searches_for_nothing(command, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    searches = []
    real = sizing.longest_look_back
    monkeypatch.setattr(sizing, "longest_look_back", lambda *args, **kw: searches.append(args) or real(*args, **kw))
    assert command(*SELF_FORCING, "--gpu", "h100", "--kv", "int2,bf16", "--plot", tmp_path / "streams.png")[0] == 0
    assert len(searches) == 2  # one a row of the table


def test_a_plot_without_matplotlib(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = command(*SELF_FORCING, "--plot", tmp_path / "streams.png")
    assert code == 2
    assert "--plot needs matplotlib; install it with: pip install 'pagedvid[plot]'" in err


def test_labels_of_the_plot_keep_apart():
    labels = [plot._Label(height, str(height), "") for height in (3.0, 10.0, 3.1, 2.9)]
    placed = plot._apart(labels, 1.0)
    assert [label.text for label in placed] == ["2.9", "3.0", "3.1", "10.0"]
    assert [label.height for label in placed] == pytest.approx([2.9, 3.9, 4.9, 10.0])


def test_sizes_need_no_torch():
    code = (
        "import sys\nfrom pagedvid.cli.main import main\n"
        f"assert main(['models']) == main({list(SELF_FORCING)}) == 0\n"
        "assert 'torch' not in sys.modules, 'PyTorch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("command_name", ["capacity", "models"])
def test_help_fits_a_terminal(command, command_name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = command(command_name, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80


def test_the_command_counts_them(command):
    code, out, err = command("capacity", "--model", "krea-14b", "--memory", "24GiB", "--weights", "fp8-offload")
    assert code == 0, err
    assert "less weights fp8-offload" in out and "in host memory)" in out
    words = ("--format", "json", "--kv", "int2")
    answers = {}
    for weights in ("fp8", "offload", "fp8-offload"):
        code, out, err = command("capacity", "--model", "krea-14b", "--memory", "24GiB", "--weights", weights, *words)
        assert code == 0, err
        answers[weights] = json.loads(out)
    streams = [answer["rows"][0]["num_streams"] for answer in answers.values()]
    assert streams == sorted(streams) and streams[0] < streams[-1]
    assert answers["fp8"]["weights_host_bytes"] == 0 < answers["offload"]["weights_host_bytes"]


def test_what_a_vae_keeps_for_each_video_is_told(command):
    """It grows with the pixels; MAGI-1's VAE decodes finished videos only."""
    sizes = {}
    for words in (("longlive-2-5b",), ("longlive-2-5b", "--resolution", "640x352"), ("magi-1-4.5b",)):
        code, out, err = command("capacity", "--memory", "60GiB", "--format", "json", "--model", *words)
        assert code == 0, err
        sizes[words] = json.loads(out)["vae_stream_bytes"]
    assert list(sizes.values()) == [6431744000, 6431744000 // 4, 0]
    code, out, err = command("capacity", "--memory", "60GiB", "--model", "longlive-2-5b")
    assert "vae      5.99 GiB of main memory for each video whose frames stream out" in out


def test_a_card_without_a_block_says_what_it_has(command):
    code, _, err = command("capacity", "--model", "lingbot-14b", "--weights", "offload")
    assert code == 2 and "--weights is 'offload'; allowed for lingbot-14b are bf16, fp8, none" in " ".join(err.split())
