"""Settings: rules, layers, sources, and names that must agree with the modules that define them."""

import ast
import dataclasses
import inspect
import json
from pathlib import Path

import pytest

from pagedvid.codecs.assignment import read_layers
from pagedvid.config import sections as config_module
from pagedvid.config import serving
from pagedvid.config.file import Setting, load_config, read_assignment, read_file, resolve
from pagedvid.config.sections import (
    DTYPES,
    SECTIONS,
    CacheConfig,
    Config,
    EngineConfig,
    GenerateConfig,
    ModelConfig,
    frame_settings,
)
from pagedvid.correction import MODES
from pagedvid.engine.scheduler import POLICIES
from pagedvid.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


def written(tmp_path, text):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return path


class TestDeclarations:
    def test_every_field_is_documented(self):
        classes = {type_.__name__ for type_ in [*SECTIONS.values(), Config]}
        trees = [ast.parse(inspect.getsource(module)) for module in (config_module, serving)]
        checked = set()
        nodes = [node for tree in trees for node in ast.walk(tree)]
        for class_ in (node for node in nodes if isinstance(node, ast.ClassDef) and node.name in classes):
            for statement, after in zip(class_.body, [*class_.body[1:], None], strict=True):
                if isinstance(statement, ast.AnnAssign):
                    is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    assert is_text and after.value.value, f"{class_.name}.{statement.target.id} has no docstring"
                    checked.add((class_.name, statement.target.id))
        declared = {(type_.__name__, name) for type_ in SECTIONS.values() for name in type_.field_names()}
        assert declared <= checked

    def test_every_default_passes_its_own_rule(self):
        for section in SECTIONS.values():
            for field in dataclasses.fields(section):
                assert section.read_field(field.name, field.default) == field.default

    def test_sections_are_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            CacheConfig().codec = "int4"

    def test_dtypes_are_those_of_pytorch(self):
        import torch

        assert all(isinstance(getattr(torch, name), torch.dtype) for name in DTYPES)

    def test_every_correction_and_policy_may_be_set(self):
        assert {CacheConfig(correction=mode).correction for mode in MODES} == set(MODES)
        assert {EngineConfig(policy=policy).policy for policy in POLICIES} == set(POLICIES)

    def test_default_yaml_names_every_field_with_its_default(self):
        settings = read_file(CONFIGS / "default.yaml")
        assert {(it.section, it.key) for it in settings} == {
            (name, key) for name, section in SECTIONS.items() for key in section.field_names()
        }
        assert resolve(settings).config == Config()

    @pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
    def test_every_shipped_configuration_loads(self, path):
        assert isinstance(load_config(path), Config)


class TestRules:
    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda: ModelConfig(name=""), "model.name is ''; allowed is the name of a model"),
            (lambda: ModelConfig(device="gpu"), "model.device is 'gpu'; allowed is cpu, cuda or cuda:N"),
            (lambda: ModelConfig(dtype="float16"), "model.dtype is 'float16'; allowed is one of float32, bfloat16"),
            (
                lambda: CacheConfig(memory="2 GG"),
                "cache.memory is '2 GG'; allowed is a size above zero and at most 1024TiB",
            ),
            (lambda: CacheConfig(memory=0), "cache.memory is 0; allowed is a size above zero"),
            (lambda: CacheConfig(memory=True), "cache.memory is True"),
            (
                lambda: CacheConfig(codec="int3"),
                "cache.codec is 'int3'; allowed is one of auto, klt, int, or a codec, or KEYS/VALUES such as",
            ),
            (
                lambda: CacheConfig(codec="int2/"),
                "cache.codec is 'int2/'; allowed is one of auto, klt, int, or",
            ),
            (
                lambda: CacheConfig(codec="auto/int2"),
                "cache.codec is 'auto/int2'; allowed is one of auto,",
            ),
            (lambda: CacheConfig(codec="klt9"), r"cache.codec is 'klt9'; .* klt2 \(0.5 to 8 bits"),
            (lambda: CacheConfig(bits=0), "cache.bits is 0; allowed is null, or a number from 0.05 to 16"),
            (
                lambda: CacheConfig(look_back="all"),
                "cache.look_back is 'all'; allowed is one of auto, uniform, per_head",
            ),
            (
                lambda: CacheConfig(codec=["int2"]),
                r"cache.codec is \['int2'\]; allowed is one of auto,",
            ),
            (
                lambda: CacheConfig(sink_codec="x"),
                "cache.sink_codec is 'x'; allowed is null, or a codec, or KEYS/VALUES",
            ),
            (lambda: CacheConfig(sink_codec="auto"), "cache.sink_codec is 'auto'; allowed is null, or a codec"),
            (lambda: CacheConfig(newest_codec="int4/x"), "cache.newest_codec is 'int4/x'; allowed is null, or a codec"),
            (
                lambda: CacheConfig(layer_codecs={"0-1": "int3"}),
                "cache.layer_codecs is {'0-1': 'int3'}; allowed is a mapping from layers to codecs, such as {0-1: int8",
            ),
            (lambda: CacheConfig(layer_codecs={"2-1": "int4"}), "allowed is a mapping from layers to codecs"),
            (lambda: CacheConfig(layer_codecs="int4"), "cache.layer_codecs is 'int4'; allowed is a mapping"),
            (lambda: CacheConfig(layer_codecs=["int4"]), r"cache.layer_codecs is \['int4'\]; allowed is a mapping"),
            (
                lambda: CacheConfig(page_rows=4),
                "cache.page_rows is 4; allowed is auto, or a whole number from 5 to 4096",
            ),
            (lambda: CacheConfig(page_rows=4097), "from 5 to 4096"),
            (lambda: CacheConfig(page_rows="36"), "cache.page_rows is '36'; allowed is auto, or a whole number"),
            (lambda: CacheConfig(tables=""), "cache.tables is ''; allowed is null, or a path"),
            (
                lambda: CacheConfig(sink_chunks=-1),
                "cache.sink_chunks is -1; allowed is auto, or a whole number from 0 to 100000",
            ),
            (
                lambda: CacheConfig(recent_chunks=0),
                "cache.recent_chunks is 0; allowed is auto, or a whole number from 1 to 100000",
            ),
            (lambda: CacheConfig(recent_chunks=1.5), "cache.recent_chunks is 1.5"),
            (lambda: CacheConfig(recent_chunks=True), "cache.recent_chunks is True"),
            (
                lambda: CacheConfig(correction=False),
                "cache.correction is False; allowed is one of auto, off, formula, variance, measured",
            ),
            (lambda: CacheConfig(debug_checks="yes"), "cache.debug_checks is 'yes'; allowed is true or false"),
            (lambda: EngineConfig(concurrent="all"), "engine.concurrent is 'all'; allowed is auto, or a whole number"),
            (lambda: EngineConfig(concurrent=0), "engine.concurrent is 0"),
            (lambda: EngineConfig(policy="lifo"), "engine.policy is 'lifo'; allowed is one of fcfs, round_robin"),
            (lambda: EngineConfig(denoise_steps=1001), "from 1 to 1000"),
            (lambda: GenerateConfig(num_frames=0), "generate.num_frames is 0"),
            (lambda: GenerateConfig(seed=-1), "generate.seed is -1"),
            (lambda: GenerateConfig(scale=65), "generate.scale is 65"),
            (lambda: GenerateConfig(frames_per_second=0), "generate.frames_per_second is 0"),
            (lambda: GenerateConfig(frames_per_second=float("nan")), "generate.frames_per_second is nan"),
        ],
    )
    def test_a_wrong_value_names_itself_and_what_is_allowed(self, build, message):
        with pytest.raises(ConfigError, match=message):
            build()

    def test_values_are_read_into_what_the_program_uses(self):
        assert CacheConfig(memory="1.5GiB").memory == 3 * 2**29
        assert CacheConfig(memory="1.5GiB").written_field("memory") == "1536MiB"
        layers = CacheConfig(layer_codecs={"0-1": "int8", 5: "int4/int2"})
        assert layers.layer_codecs == read_layers({"0-1": "int8", 5: "int4/int2"})
        assert [(first, last, str(pair)) for first, last, pair in layers.layer_codecs] == [
            (0, 1, "int8"),
            (5, 5, "int4/int2"),
        ]
        assert layers.written_field("layer_codecs") == {"0-1": "int8", "5": "int4/int2"}
        assert CacheConfig(layer_codecs=layers.written_field("layer_codecs")) == layers
        assert GenerateConfig(frames_per_second=8).frames_per_second == 8.0
        assert isinstance(GenerateConfig(frames_per_second=8).frames_per_second, float)


class TestFile:
    def test_values_and_lines(self, tmp_path):
        path = written(tmp_path, "cache:\n  correction: off\n  memory: 24GiB\n\nengine:\n  concurrent: 3\ngenerate:\n")
        resolved = resolve(read_file(path))
        assert (resolved.config.cache.correction, resolved.config.cache.memory) == ("off", 24 * 2**30)
        assert resolved.config.engine.concurrent == 3
        assert resolved.sources["cache.memory"] == "settings.yaml:3"
        assert resolved.sources["engine.concurrent"] == "settings.yaml:6"
        assert resolved.sources["cache.codec"] == "default"

    def test_codecs_of_layers(self, tmp_path):
        text = "cache:\n  codec: int4/int2\n  layer_codecs: {0-1: int8, 5: klt2/int4, 7-7: bf16}\n  page_rows: 32\n"
        cache = load_config(written(tmp_path, text)).cache
        assert (cache.codec, cache.page_rows) == ("int4/int2", 32)
        assert cache.layer_codecs == read_layers({"0-1": "int8", 5: "klt2/int4", 7: "bf16"})
        block = written(tmp_path, "cache:\n  layer_codecs:\n    0-1: int8\n    5: klt2/int4\n    7: bf16\n")
        assert load_config(block).cache.layer_codecs == cache.layer_codecs

    def test_an_empty_file_changes_nothing(self, tmp_path):
        assert load_config(written(tmp_path, "# nothing\n")) == Config()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("cahce:\n  codec: int2\n", 'settings.yaml:1: unknown section "cahce" - did you mean "cache"'),
            ("cahce:\n", 'unknown section "cahce"'),
            ("\ncache:\n  codecs: int2\n", 'settings.yaml:3: unknown key "cache.codecs" - did you mean "cache.codec"'),
            (
                "cache:\n  zzz: 1\n",
                "known: memory, codec, bits, look_back, sink_codec, newest_codec, layer_codecs, page_rows",
            ),
            ("cache:\n  codec: int3\n", "settings.yaml:2: cache.codec is 'int3'"),
            ("cache:\n  layer_codecs: {0: int3}\n", "settings.yaml:2: cache.layer_codecs is {0: 'int3'}"),
            ("cache:\n\n  page_rows: 1\n", "settings.yaml:3: cache.page_rows is 1"),
            ("cache:\n  codec: int2\n  codec: int4\n", 'settings.yaml:3: "codec" is written twice'),
            ("cache: 3\n", 'section "cache" must consist of `key: value` lines'),
            ("- cache\n", "the file must consist of `key: value` lines"),
            ("cache: [\n", "settings.yaml:2: not valid YAML"),
            ("cache:\n\tcodec: int2\n", "settings.yaml:2: not valid YAML"),
            (
                "cache:\n  codec: !!python/object:os.system x\n",
                "settings.yaml:2: the tag !!python/object:os.system is not read",
            ),
            ("\0", "settings.yaml:1: not valid YAML: U\\+0000"),
            ("cache: {codec: int2}\n---\nengine: {}\n", "settings.yaml:2: not valid YAML"),
        ],
    )
    def test_what_is_wrong_is_named_with_its_line(self, tmp_path, text, message):
        with pytest.raises(ConfigError, match=message):
            load_config(written(tmp_path, text))

    def test_missing_and_unreadable_files(self, tmp_path):
        with pytest.raises(ConfigError, match="there is no such file"):
            load_config(tmp_path / "none.yaml")
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(tmp_path)
        (tmp_path / "latin.yaml").write_bytes(b"model: {name: \xe9}\n")
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(tmp_path / "latin.yaml")


class TestLayers:
    def test_the_last_layer_wins_and_is_named(self, tmp_path):
        file = read_file(written(tmp_path, "cache: {codec: int4, recent_chunks: 2}\n"))
        flag = Setting("cache", "codec", "int8", "--kv")
        assignment = read_assignment("cache.codec=bf16")
        assert resolve([*file, flag]).config.cache.codec == "int8"
        resolved = resolve([*file, flag, assignment])
        assert (resolved.config.cache.codec, resolved.sources["cache.codec"]) == ("bf16", "--set")
        assert (resolved.config.cache.recent_chunks, resolved.sources["cache.recent_chunks"]) == (2, "settings.yaml:1")

    @pytest.mark.parametrize(
        ("assignment", "section", "key", "value"),
        [
            ("cache.sink_codec=null", "cache", "sink_codec", None),
            ("cache.correction=off", "cache", "correction", "off"),
            ("cache.debug_checks=true", "cache", "debug_checks", True),
            ("cache.layer_codecs={0-1: int8, 5: int4/int2}", "cache", "layer_codecs", {"0-1": "int8", 5: "int4/int2"}),
            ("cache.codec=int4/klt1.5", "cache", "codec", "int4/klt1.5"),
            ("engine.concurrent = 4", "engine", "concurrent", 4),
            ("model.weights=a=b", "model", "weights", "a=b"),
        ],
    )
    def test_assignments(self, assignment, section, key, value):
        setting = read_assignment(assignment)
        assert (setting.section, setting.key, setting.value) == (section, key, value)

    @pytest.mark.parametrize("assignment", ["", "cache", "cache.codec", "codec=int2", "=1"])
    def test_malformed_assignments(self, assignment):
        with pytest.raises(ConfigError, match=r"write it as section\.key=value"):
            read_assignment(assignment)


def test_frame_settings_leave_out_only_what_cannot_change_a_frame():
    settings = frame_settings(Config())
    assert json.loads(json.dumps(settings)) == settings
    assert {"cache.layer_codecs", "cache.page_rows", "cache.tables"} <= settings.keys()
    assert {"cache.codec", "cache.correction", "cache.recent_chunks", "engine.denoise_steps"} <= settings.keys()
    assert not {"cache.memory", "engine.concurrent", "generate.seed"} & settings.keys()
