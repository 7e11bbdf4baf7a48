"""Whatever a host has set in PyTorch, and however its tensors are laid out: the same result, or an error by name."""

from __future__ import annotations

import ast
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagedvid import CacheSpec, PagedKVCache, StreamCodecs, Window
from pagedvid.cache.plan import QueryRange
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.tables_file import Calibration, load_calibration, save_calibration
from pagedvid.errors import ShapeError
from pagedvid.host_state import independent_of_host, plain_tensor
from pagedvid.integrations.dense_view import DenseWindow
from tests.attention.projective_reference import SeededProjection
from tests.attention.reference import TableRope
from tests.codecs.klt import scenes as klt_scenes

HEADS, HEAD_DIM, TOKENS, CHUNKS = 2, 16, 40, 3
ROPES = {None: None, "half": TableRope("half", HEAD_DIM), "interleaved": TableRope("interleaved", HEAD_DIM)}
PACKAGE = Path(__file__).parents[1] / "pagedvid"

pytestmark = pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")

# ---------------------------------------------------------------------- how a host may hand tensors over


def strided(*axes: int) -> Callable[[Tensor], Tensor]:
    """The same values with other axes innermost in memory."""
    back = [axes.index(axis) for axis in range(3)]
    return lambda x: x.permute(axes).contiguous().permute(back)


class Logged(Tensor):
    """A subclass whose functions do something different."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("a host's subclass must not be asked")


def every_other_token(x: Tensor) -> Tensor:
    return torch.stack([x, x + 1], dim=1).flatten(0, 1)[::2]


def every_other_channel(x: Tensor) -> Tensor:
    return torch.stack([x, x + 1], dim=-1).flatten(-2)[..., ::2]


def in_inference_mode(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "heads outermost": strided(1, 0, 2),
    "channels outermost": strided(2, 0, 1),
    "heads innermost": strided(0, 2, 1),
    "tokens innermost": strided(2, 1, 0),
    "every other token": every_other_token,
    "every other channel": every_other_channel,
    "behind others in memory": lambda x: torch.cat([torch.full_like(x[:3], torch.nan), x])[3:],
    "negative in memory": lambda x: torch._neg_view(-x),
    "a parameter": lambda x: torch.nn.Parameter(x.clone()),
    "part of a graph": lambda x: torch.nn.Parameter(x.clone()) * 1,
    "a subclass": lambda x: x.clone().as_subclass(Logged),
    "made in inference mode": in_inference_mode,
}

# ---------------------------------------------------------------------- what a host may have set


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    """PyTorch then fills new tensors with NaN, which shows whether anything is read before it is written."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def rounded_products(precision: str) -> Iterator[None]:
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        assert torch.get_float32_matmul_precision() == precision
        torch.set_float32_matmul_precision("highest")


class Watching(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("a host's mode must not be asked")


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "default device": lambda: torch.device("meta"),
    "function mode": Watching,
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "default dtype float16": lambda: default_dtype(torch.float16),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "deterministic": deterministic,
    "products in bfloat16": lambda: rounded_products("medium"),
    "products in tf32": lambda: rounded_products("high"),
    "anomaly detection": lambda: torch.autograd.detect_anomaly(check_nan=False),
}

# ---------------------------------------------------------------------- a host


@dataclass(frozen=True)
class Case:
    codec: str
    correction: str
    arrive: str
    layout: str | None
    dtype: torch.dtype
    is_projected: bool
    has_context: bool


def cases() -> st.SearchStrategy[Case]:
    codecs = ("int2", "int4/int8", "int2-pair-s8", "int4-post", "token4-g16", "hadamard4-g16", "bf16", "fp32", "klt2")
    drawn = st.builds(
        Case,
        st.sampled_from(codecs),
        st.sampled_from(("off", "formula", "variance", "measured")),
        st.sampled_from(("before_rotary", "rotated")),
        st.sampled_from((None, "half", "interleaved")),
        st.sampled_from((torch.float32, torch.bfloat16, torch.float16)),
        st.booleans(),
        st.booleans(),
    )
    return drawn.filter(is_allowed)


def is_allowed(case: Case) -> bool:
    stores_rotated = case.codec.endswith("-post") or case.codec.startswith(("token", "hadamard"))
    return not (case.codec == "klt2" and case.correction == "formula") and not (
        case.is_projected and (stores_rotated or case.arrive == "rotated")
    )


@lru_cache(maxsize=1)
def klt_file() -> Path:
    """Tables on disk, as hosts have them."""
    path = Path(tempfile.mkdtemp()) / "klt_tables.safetensors"
    keys, values = (klt_scenes.tables(kind) for kind in ("keys", "values"))
    save_calibration(Calibration.of("test", [keys], [values]), path)
    return path


def make_cache(case: Case) -> PagedKVCache:
    page = klt_scenes.page("klt2") if case.codec == "klt2" else None
    spec = CacheSpec(
        1,
        HEADS,
        HEAD_DIM,
        num_query_heads=2 * HEADS,
        codecs=StreamCodecs(case.codec, newest="bf16"),
        correction=case.correction,
        keys_arrive=case.arrive,
        **({"page_rows": page.rows, "tokens_per_frame": 10, "frames_per_block": 4} if page else {}),
    )
    tables = load_calibration(klt_file()) if page else None
    return PagedKVCache(spec, "1MiB", book=CodecBook(spec.shape.page, HEADS, tables))


def drawn(case: Case) -> list[list[Tensor]]:
    """q, k, v and the keys and values of a context, chunk by chunk."""
    generator = torch.Generator().manual_seed(0)

    def tokens(number: int, heads: int) -> Tensor:
        return torch.randn(number, heads, HEAD_DIM, generator=generator, dtype=torch.float32).to(case.dtype)

    sizes = [(TOKENS, 2 * HEADS), (TOKENS, HEADS), (TOKENS, HEADS), (7, HEADS), (7, HEADS)]
    return [[tokens(*size) for size in sizes] for _ in range(CHUNKS)]


def video(case: Case, chunks: list[list[Tensor]], state: AbstractContextManager[Any]) -> list[Tensor]:
    """What a host gets: outputs of commit passes and of denoise steps, then the bytes of the pages and the factors."""
    rope = ROPES[case.layout]
    projections = [SeededProjection(10, case.layout or "half")] if case.is_projected else []
    outs = []
    klt_file()  # which is not made in any state
    with state:
        cache = make_cache(case)
        stream = cache.open(Window(1, 2), TOKENS)
        for number, (q, k, v, *context) in enumerate(chunks):
            more = {"projections": projections, "context": [tuple(context)] if case.has_context else []}
            for commit in (False, True):
                with cache.step([QueryRange(stream, commit=commit, tag=(number, TOKENS // 10))]) as step:
                    outs.append(step.attend(0, q, k, v, rope, **more))
        cache.check()
    kept = [x for chunk in stream.chunks() for x in (chunk.alpha, chunk.variance) if x is not None]
    pages = [cache.pool.read(chunk.table.ids) for chunk in stream.chunks()]
    assert all(out.dtype == case.dtype and not out.requires_grad for out in outs)
    return [*outs, *kept, *pages]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), float((a.double() - b.double()).abs().max())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases(), st.sampled_from(sorted(FORMS)))
def test_the_memory_layout_of_tensors_does_not_matter(case: Case, form: str) -> None:
    chunks = drawn(case)
    given_chunks = [[FORMS[form](x) for x in chunk] for chunk in chunks]
    assert_same(video(case, given_chunks, nullcontext()), video(case, chunks, nullcontext()))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases(), st.sampled_from(sorted(STATES)))
def test_what_is_set_in_pytorch_does_not_matter(case: Case, state: str) -> None:
    chunks = drawn(case)
    assert_same(video(case, chunks, STATES[state]()), video(case, chunks, nullcontext()))


@pytest.mark.parametrize("state", sorted(STATES))
def test_a_state_may_come_and_go_between_the_steps_of_a_stream(state: str) -> None:
    """Tensors that are kept must not be marked by the state in which they were made."""
    case = Case("int2", "measured", "before_rotary", "half", torch.float32, False, False)
    chunks = drawn(case)
    cache = make_cache(case)
    stream = cache.open(Window(1, 2), TOKENS)
    outs = []
    for number, (q, k, v, *_) in enumerate(chunks):
        for commit in (False, True):
            with (
                STATES[state]() if number % 2 == 0 else nullcontext(),
                cache.step([QueryRange(stream, commit=commit)]) as step,
            ):
                outs.append(step.attend(0, q, k, v, ROPES["half"]))
    assert_same(outs, video(case, chunks, nullcontext())[: len(outs)])


def test_expanded_tensors_are_read_as_they_look() -> None:
    """Stride 0 along any axis; overlapping windows of one row of numbers."""
    base = torch.randn(TOKENS + 2 * HEADS + HEAD_DIM, generator=torch.Generator().manual_seed(0))
    case = Case("int2", "measured", "before_rotary", "half", torch.float32, False, False)
    for sizes in ((1, 1, HEAD_DIM), (TOKENS, 1, 1), (1, HEADS, 1)):
        shapes = [(TOKENS, 2 * HEADS, HEAD_DIM), *[(TOKENS, HEADS, HEAD_DIM)] * 2]
        small = [torch.randn(min(sizes[0], TOKENS), *sizes[1:]) if i else torch.randn(1, 1, HEAD_DIM) for i in range(3)]
        chunk = [x.expand(shape) for x, shape in zip(small, shapes, strict=True)]
        chunks = [[*chunk, *drawn(case)[0][3:]]] * 2
        dense = [[x.contiguous() for x in chunk] for chunk in chunks]
        assert_same(video(case, chunks, nullcontext()), video(case, dense, nullcontext()))
    overlapping = [base.as_strided((TOKENS, heads, HEAD_DIM), (1, 1, 1)) for heads in (2 * HEADS, HEADS, HEADS)]
    dense = [x.contiguous() for x in overlapping]
    assert_same(video(case, [overlapping] * 2, nullcontext()), video(case, [dense] * 2, nullcontext()))


def test_another_thread_has_its_own_settings() -> None:
    """Default device, autocast and gradients are set by thread."""
    case = Case("hadamard4-g16", "measured", "before_rotary", "half", torch.bfloat16, False, True)
    found: list[list[Tensor]] = []
    with torch.inference_mode(), torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        thread = threading.Thread(target=lambda: found.append(video(case, drawn(case), nullcontext())))
        thread.start()
        thread.join()
    assert_same(found[0], video(case, drawn(case), nullcontext()))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.sampled_from([(codec, correction) for codec in ("int2", "token4-g16") for correction in ("off", "measured")]),
    st.sampled_from(sorted(FORMS)),
    st.sampled_from(sorted(STATES)),
)
def test_dense_views_do_not_depend_on_the_host(kind: tuple[str, str], form: str, state: str) -> None:
    case = Case(*kind, "rotated", "interleaved", torch.float32, False, False)

    def views(change: Callable[[Tensor], Tensor], state: AbstractContextManager[Any]) -> list[Tensor]:
        found = []
        chunks = [[change(x) for x in chunk] for chunk in drawn(case)]
        with state:
            cache = make_cache(case)
            window = DenseWindow(cache, cache.open(Window(1, 2), TOKENS), rope=ROPES["interleaved"])
            for number, (q, k, v, *_) in enumerate(chunks):
                view = window.update_and_get(0, k, v, number * TOKENS, q)
                found += [view.lse_shift(q), view.key_bias(q)]
                with torch._C.DisableTorchFunction():  # the state is not the test's
                    found += [view.k.clone(), view.v.clone()]
        return found

    assert_same(views(FORMS[form], STATES[state]()), views(lambda x: x, nullcontext()))


# ---------------------------------------------------------------------- what is refused


class OwnDispatch(Tensor):
    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("nothing may be computed with it")


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "numpy": (lambda x: x.numpy(), "k is a ndarray; it must be a torch.Tensor"),
    "nothing": (lambda x: None, "k is a NoneType"),
    "sparse": (lambda x: x.to_sparse(), "k is a Tensor with layout torch.sparse_coo; give an ordinary dense tensor"),
    "nested": (lambda x: torch.nested.nested_tensor([x[:20], x[20:]]), "k is a .*; give an ordinary dense tensor"),
    "quantized": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "give an ordinary dense tensor"),
    "own dispatch": (lambda x: Tensor._make_subclass(OwnDispatch, x), "k is a OwnDispatch with layout torch.strided"),
    "float64": (lambda x: x.double(), "k is torch.float64; q, k and v must share one of torch.float32"),
    "integers": (lambda x: x.long(), "k is torch.int64"),
    "complex": (lambda x: x + 0j, "k is torch.complex64"),
}


@pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning", "ignore:.*quantize_per_tensor.*")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_what_its_shape_says_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    case = Case("int2", "measured", "before_rotary", "half", torch.float32, False, False)
    q, k, v, *_ = drawn(case)[0]
    cache = make_cache(case)
    stream = cache.open(Window(1, 2), TOKENS)
    with pytest.raises(ShapeError, match=message), cache.commit([stream]) as step:
        step.attend(0, q, make(k), v, ROPES["half"])
    cache.check()
    assert not list(stream.chunks()) and cache.pool.num_used_pages == 0


def test_tensors_of_torch_func_are_refused() -> None:
    case = Case("int2", "measured", "before_rotary", "half", torch.float32, False, False)
    q, k, v, *_ = drawn(case)[0]
    cache = make_cache(case)
    stream = cache.open(Window(1, 2), TOKENS)
    with pytest.raises(ShapeError, match=r"q is wrapped by torch\.func"), cache.denoise([stream]) as step:
        torch.func.vmap(lambda x: step.attend(0, x, k, v))(q[None])


def test_a_plain_tensor_is_handed_on_without_a_copy() -> None:
    x = torch.randn(3, 4)
    assert plain_tensor("x", x).data_ptr() == x.data_ptr()
    assert plain_tensor("x", x.T).is_contiguous()


# ---------------------------------------------------------------------- the mechanism


def test_settings_are_the_hosts_again_afterwards_also_after_an_error() -> None:
    @independent_of_host
    def look() -> tuple[bool, ...]:
        assert torch.backends.mkldnn.matmul.fp32_precision in ("none", "ieee")
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")

    @independent_of_host
    def fail() -> None:
        raise KeyError

    torch.backends.mkldnn.matmul.fp32_precision = "none"  # it has no precision of its own, and follows the next line
    torch.backends.fp32_precision = "tf32"
    try:
        with torch.autocast("cpu"), torch.inference_mode():
            assert look() == (False, False, False)
            with pytest.raises(KeyError):
                fail()
            assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
            assert torch.backends.mkldnn.matmul.fp32_precision == "tf32"
        torch.backends.fp32_precision = "none"
        assert torch.backends.mkldnn.matmul.fp32_precision == "none"
    finally:
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")


def test_one_setting_for_all_products_as_before_pytorch_2_9(monkeypatch) -> None:
    from pagedvid import host_state

    monkeypatch.setattr(host_state, "_PRODUCTS", (host_state._AllProducts(),))
    with rounded_products("medium"):
        assert independent_of_host(torch.get_float32_matmul_precision)() == "highest"


MAKERS = {"zeros", "ones", "empty", "full", "eye", "linspace", "logspace", "tensor", "rand", "randn", "scalar_tensor"}


def test_every_tensor_that_is_made_names_its_dtype() -> None:
    """The default dtype belongs to the process: it is the host's, and may change while other threads are running."""
    nameless = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            is_maker = (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "torch"
                and node.func.attr in MAKERS
            )
            if is_maker and not any(keyword.arg in ("dtype", "out", None) for keyword in node.keywords):
                nameless.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert nameless == []
