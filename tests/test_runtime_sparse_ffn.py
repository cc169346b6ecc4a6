"""The sparse FFN: equal to the dense one in float64, on every path, level and family."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN

from brickwork.errors import ConfigurationError, UnknownNameError
from brickwork.model.ffn import FFN, ffn_of
from brickwork.model.parts import ffn_row_of, layers_of
from brickwork.runtime import sparse_native, sparse_triton
from brickwork.runtime.kernels import Records
from brickwork.runtime.sparse_ffn import (
    PATHS,
    SparsePolicy,
    available,
    crossover,
    packed,
    sparse_ffn,
)
from brickwork.runtime.sparse_native import (
    LEVELS,
    native_levels,
    native_problem,
    native_sparse_ffn,
)
from tests.tiny import FAMILIES, tiny_model

ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The library is compiled once for this file, and not into the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRICKWORK_CACHE", str(folder))
        patch.delenv("BRICKWORK_NATIVE", raising=False)
        forget()
        yield folder
    forget()


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and nothing loaded yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("BRICKWORK_CACHE", str(folder))
    forget()
    yield folder
    forget()


@pytest.fixture
def built(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The library in an otherwise empty cache, not loaded yet."""
    need("native")
    fresh = tmp_path / "seeded"
    fresh.mkdir(mode=0o700)
    monkeypatch.setenv("BRICKWORK_CACHE", str(fresh))
    (library,) = cache.glob("*.so")
    forget()
    yield Path(shutil.copy2(library, fresh))
    forget()


def forget() -> None:
    sparse_native._load.cache_clear()
    sparse_native._best_level.cache_clear()


def need(path: str) -> None:
    """Skip where the machine cannot take that path at all."""
    if path == "native" and native_problem() is not None:
        pytest.skip(f"no native kernel here: {native_problem()}")
    if path == "triton":
        pytest.importorskip("triton")
        if os.environ.get("TRITON_INTERPRET") != "1":  # Triton looks when it is imported
            pytest.skip("Triton's interpreter is off; start pytest with TRITON_INTERPRET=1")


def new_ffn(
    hidden: int = 33,
    neurons: int = 50,
    *,
    gated: bool = True,
    biased: bool = True,
    activation: str = "silu",
    dtype: torch.dtype = torch.float32,
) -> FFN:
    chance = torch.Generator().manual_seed(hidden * 1000 + neurons)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=chance) / shape[-1] ** 0.5).to(dtype)

    return FFN(
        activation=ACT2FN[activation],
        up=normal(neurons, hidden),
        down=normal(hidden, neurons),
        gate=normal(neurons, hidden) if gated else None,
        up_bias=normal(neurons) if biased else None,
        down_bias=normal(hidden) if biased else None,
        gate_bias=normal(neurons) if biased and gated else None,
    )


def inputs(ffn: FFN, tokens: int, scale: float = 1.0) -> Tensor:
    chance = torch.Generator().manual_seed(tokens)
    return (torch.randn(tokens, ffn.up.shape[1], generator=chance) * scale).to(ffn.up.dtype)


def some_of(neurons: int, chosen: int) -> Tensor:
    return (
        torch.randperm(neurons, generator=torch.Generator().manual_seed(1))[:chosen].sort().values
    )


def exact(ffn: FFN, x: Tensor, neurons: Tensor, keep: Tensor | None = None) -> Tensor:
    """The dense FFN in float64, on the weights as they are, with the others' activations at 0."""
    values = {name: v.double() for name, v in vars(ffn).items() if isinstance(v, Tensor)}
    wide = replace(ffn, **values)
    mask = torch.zeros(len(x), ffn.neurons, dtype=torch.float64)
    mask[:, neurons] = 1.0 if keep is None else keep.double()
    return wide.output(wide.activations(x.double()) * mask)


def assert_close(y: Tensor, expected: Tensor, path: str = "native") -> None:
    """Within the rounding of float32 sums; bfloat16 rounds the result, too.

    torch also rounds activations and the sum of every piece to bfloat16.
    """
    error, most = (y.double() - expected).abs(), expected.abs().max()
    assert y.isfinite().all()
    if y.dtype == torch.float32:
        allowed = 1e-5 * most + torch.zeros_like(error)
    elif path == "torch":
        allowed = 2**-5 * most + torch.zeros_like(error)
    else:
        allowed = 2**-8 * expected.abs() + 1e-5 * most
    assert (error <= allowed).all(), f"{error.max()} of {most}"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_the_dense_ffn_in_float64(
    activation: str,
    gated: bool,
    dtype: torch.dtype,
    path: str,
) -> None:
    need(path)
    ffn = new_ffn(gated=gated, activation=activation, dtype=dtype)
    x, neurons = inputs(ffn, 3), some_of(50, 21)
    y = sparse_ffn(Records.pack(ffn), x, neurons, path=path)
    assert y.dtype == dtype
    assert_close(y, exact(ffn, x, neurons), path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize(("hidden", "chosen"), [(1, 1), (15, 3), (64, 50), (100, 0), (129, 49)])
def test_any_size_and_any_mask(hidden: int, chosen: int, tokens: int, path: str) -> None:
    need(path)
    ffn = new_ffn(hidden, biased=chosen != 3)
    records, x, neurons = Records.pack(ffn), inputs(ffn, tokens), some_of(50, chosen)
    assert_close(sparse_ffn(records, x, neurons, path=path), exact(ffn, x, neurons))
    keep = torch.rand(tokens, chosen, generator=torch.Generator().manual_seed(2)) < 0.5
    masked = sparse_ffn(records, x, neurons, keep=keep, path=path)
    assert_close(masked, exact(ffn, x, neurons, keep))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_takes_groups_as_it_takes_neurons(dtype: torch.dtype) -> None:
    ffn = new_ffn(64, 1024, dtype=dtype)
    neurons = torch.cat([torch.arange(128, 256), torch.arange(512, 768), torch.arange(1000, 1024)])
    x, keep = inputs(ffn, 2), torch.arange(2 * len(neurons)).view(2, -1) % 3 > 0
    y = sparse_ffn(Records.pack(ffn), x, neurons, keep=keep, path="torch")
    assert_close(y, exact(ffn, x, neurons, keep), "torch")


def test_torch_gathers_in_pieces() -> None:
    ffn = new_ffn(512, 1000)
    x, neurons = inputs(ffn, 2), some_of(1000, 900)  # 5.5 MB of records
    y = sparse_ffn(Records.pack(ffn), x, neurons, path="torch")
    assert_close(y, exact(ffn, x, neurons))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden", [7, 96, 1100])  # below a vector, whole vectors, over a chunk
def test_every_level_and_number_of_threads_computes_the_same(
    hidden: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("native")
    monkeypatch.setattr(sparse_native, "BYTES_PER_THREAD", 1)
    ffn = new_ffn(hidden, 90, dtype=dtype)
    records, neurons = Records.pack(ffn), some_of(90, 61)
    for tokens in (1, 6):
        x = inputs(ffn, tokens)
        expected = exact(ffn, x, neurons)
        for level in native_levels():
            for threads in (1, 2, 5, 1000):
                y = native_sparse_ffn(records, x, neurons, threads=threads, level=level)
                assert_close(y, expected)
                again = native_sparse_ffn(records, x, neurons, threads=threads, level=level)
                assert torch.equal(y, again), "equal threads, equal bits"


def test_levels_that_every_machine_has() -> None:
    need("native")
    assert native_levels()[:2] == ["scalar", "base"]


# Triton's interpreter warns of the overflow to infinity that the logistic function rests on.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_and_undefined_inputs_go_through(activation: str, path: str) -> None:
    need(path)
    ffn = new_ffn(activation=activation)
    records, neurons = Records.pack(ffn), some_of(50, 21)
    x = inputs(ffn, 2, scale=300.0)
    assert_close(sparse_ffn(records, x, neurons, path=path), exact(ffn, x, neurons))
    x[0, 0] = float("nan")
    undefined = sparse_ffn(records, x, neurons, path=path).isnan()
    assert undefined[0].all()
    assert not undefined[1].any()


def test_an_activation_that_only_torch_knows_is_left_to_torch() -> None:
    ffn = new_ffn(activation="quick_gelu")
    records, x, neurons = Records.pack(ffn), inputs(ffn, 2), some_of(50, 20)
    assert_close(sparse_ffn(records, x, neurons), exact(ffn, x, neurons))
    problems = available(records)
    assert problems["torch"] is None
    assert problems["native"] is not None
    with pytest.raises(ConfigurationError, match="path='native', but"):
        sparse_ffn(records, x, neurons, path="native")


def test_records_hold_the_ffn_and_give_it_back() -> None:
    for gated in (True, False):
        ffn = new_ffn(gated=gated)
        records = Records.pack(ffn)
        assert (records.neurons, records.hidden) == (50, 33)
        again = records.as_ffn()
        assert torch.equal(again.up, ffn.up)
        assert torch.equal(again.down, ffn.down)
        assert again.up.data_ptr() - records.weights.data_ptr() == (33 * 4 if gated else 0)
        assert again.down.untyped_storage().data_ptr() == records.weights.data_ptr()
        assert (again.gate is None) is not gated
        x = inputs(ffn, 4)
        torch.testing.assert_close(again(x), ffn(x))  # other strides, other order of sums


def test_records_need_one_dtype() -> None:
    ffn = new_ffn()
    with pytest.raises(ConfigurationError, match="weights of one dtype on one device"):
        Records.pack(replace(ffn, up=ffn.up.double()))


def logits(model: Callable[..., object]) -> Tensor:
    with torch.no_grad():
        found = model(torch.tensor([[5, 9, 17, 3, 40, 77]])).logits  # type: ignore[attr-defined]
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("release", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_model_computes_the_same_and_is_restored(family: str, release: bool) -> None:
    model = tiny_model(family)
    before = {name: (p.data, p.data.clone()) for name, p in model.named_parameters()}
    expected = logits(model)
    dense = [n for n in range(layers_of(model)) if ffn_row_of(model, n).form != "moe_gated"]
    with packed(model, release=release) as records:
        assert list(records) == dense
        # Strided weights may be summed in another order.
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=2e-5)
        for layer, one in records.items():
            ffn = ffn_of(model, layer)
            assert isinstance(ffn, FFN)
            x = inputs(ffn, 3)
            everything = torch.arange(ffn.neurons)
            assert_close(sparse_ffn(one, x, everything), exact(ffn, x, everything))
            assert ffn.down.untyped_storage().data_ptr() == one.weights.data_ptr()
            fused = ffn_row_of(model, layer).form == "fused_gated"
            shares = ffn.up.untyped_storage().data_ptr() == one.weights.data_ptr()
            assert shares is not fused
    assert not records
    for name, parameter in model.named_parameters():
        own, bits = before[name]
        assert torch.equal(parameter, bits)
        assert parameter.stride() == own.stride()
        assert release or parameter.data_ptr() == own.data_ptr()
    assert torch.equal(logits(model), expected)


def test_a_failure_inside_restores_the_model_too() -> None:
    model = tiny_model("llama")
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    with pytest.raises(ZeroDivisionError), packed(model):
        _ = 1 / 0
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "width": ({"x": torch.ones(2, 32)}, r"x is of shape \[2, 32\], not \[tokens, 33\]"),
    "dtype": ({"x": torch.ones(2, 33).double()}, "x is torch.float64"),
    "order": ({"neurons": torch.tensor([3, 1])}, "not an ascending selection of 0 to 49"),
    "double": ({"neurons": torch.tensor([3, 3])}, "not an ascending selection"),
    "high": ({"neurons": torch.tensor([3, 50])}, "not an ascending selection"),
    "low": ({"neurons": torch.tensor([-1, 5])}, "not an ascending selection"),
    "int32": ({"neurons": torch.tensor([1, 3]).int()}, "neurons is torch.int32"),
    "float mask": ({"keep": torch.ones(2, 2)}, "keep is torch.float32"),
    "mask": ({"keep": torch.ones(2, 3).bool()}, r"keep is of shape \[2, 3\], not \[2, 2\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str) -> None:
    change, message = REFUSED[case]
    arguments: dict[str, object] = {"x": torch.ones(2, 33), "neurons": torch.tensor([1, 3])}
    with pytest.raises(ConfigurationError, match=message):
        sparse_ffn(Records.pack(new_ffn()), **(arguments | change))  # type: ignore[arg-type]


def test_unknown_names_and_paths_that_are_not_there_are_refused() -> None:
    ffn = new_ffn(dtype=torch.float64)
    records, x, neurons = Records.pack(ffn), inputs(ffn, 1), some_of(50, 3)
    with pytest.raises(UnknownNameError, match="no path of sparse_ffn is called 'natve'"):
        sparse_ffn(records, x, neurons, path="natve")
    with pytest.raises(ConfigurationError, match="path='triton', but"):
        sparse_ffn(records, x, neurons, path="triton")
    need("native")
    with pytest.raises(ConfigurationError, match="reads float32 and bfloat16, and these weights"):
        sparse_ffn(records, x, neurons, path="native")
    with pytest.raises(UnknownNameError, match="no level of the native sparse FFN"):
        native_sparse_ffn(records, x, neurons, level="mmx")


def test_the_native_call_itself_checks_what_it_hands_to_c() -> None:
    need("native")
    records, neurons = Records.pack(new_ffn()), some_of(50, 3)
    for x, numbers in [
        (torch.ones(1, 33).double(), neurons),
        (torch.ones(1, 33), neurons.int()),
        (torch.ones(1, 34), neurons),
        (torch.ones(1, 33), neurons + 48),
        (torch.ones(1, 33), neurons - 40),
    ]:
        with pytest.raises(ConfigurationError, match="cannot be used here"):
            native_sparse_ffn(records, x, numbers)
    with pytest.raises(ConfigurationError, match=r"the mask is of shape \[3, 1\]"):
        native_sparse_ffn(
            records, torch.ones(1, 33), neurons, keep=torch.ones(3, 1, dtype=torch.bool)
        )
    for name, entries in (("gate_bias", 49), ("up_bias", 1), ("down_bias", 50)):
        short = replace(records, **{name: torch.zeros(entries)})  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=rf"the {name} is of shape \[{entries}\]"):
            native_sparse_ffn(short, torch.ones(1, 33), neurons)
    strided = replace(records, weights=records.weights.T.contiguous().T)
    with pytest.raises(ConfigurationError, match="the weights are not contiguous"):
        native_sparse_ffn(strided, torch.ones(1, 33), neurons)
    if len(native_levels()) < len(LEVELS):
        missing = next(name for name in LEVELS if name not in native_levels())
        with pytest.raises(ConfigurationError, match=f"asked for level '{missing}'"):
            native_sparse_ffn(records, torch.ones(1, 33), neurons, level=missing)


def test_what_is_not_contiguous_but_allowed_is_read_right() -> None:
    need("native")
    ffn = new_ffn()
    x, numbers = inputs(ffn, 33).T.contiguous().T, torch.arange(50)[::7]
    keep = (torch.arange(33 * len(numbers)).view(len(numbers), 33) % 2 == 0).T
    y = sparse_ffn(Records.pack(ffn), x, numbers, keep=keep, path="native")
    assert_close(y, exact(ffn, x, numbers, keep))


def compiler_that(folder: Path, text: str) -> str:
    script = folder / "compiler"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    return str(script)


def assert_falls_back_to_torch() -> None:
    ffn = new_ffn()
    x, neurons, records = inputs(ffn, 2), some_of(50, 20), Records.pack(ffn)
    assert available(records)["native"] == native_problem()
    assert_close(sparse_ffn(records, x, neurons), exact(ffn, x, neurons))


def test_a_compiler_that_fails_leaves_torch(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler_that(tmp_path, "echo cannot do that >&2; exit 3"))
    assert "failed with status 3: cannot do that" in (native_problem() or "")
    assert_falls_back_to_torch()
    assert list(fresh.iterdir()) == [], "nothing half made is left"


def test_a_compiler_that_makes_nothing_or_rubbish_leaves_torch(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler_that(tmp_path, "exit 0"))
    assert "failed with status 0" in (native_problem() or "")
    forget()
    rubbish = 'for word; do case $word in *.so) echo rubbish > "$word";; esac; done'
    monkeypatch.setenv("CC", compiler_that(tmp_path, rubbish))
    assert "cannot be built or read" in (native_problem() or "")
    assert_falls_back_to_torch()


@pytest.mark.usefixtures("fresh")
def test_no_compiler_leaves_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert native_problem() == "there is no C compiler here (looked for cc, gcc, clang)"
    assert_falls_back_to_torch()
    ffn = new_ffn()
    with pytest.raises(ConfigurationError, match="path='native', but there is no C compiler"):
        sparse_ffn(Records.pack(ffn), inputs(ffn, 1), some_of(50, 3), path="native")


@pytest.mark.usefixtures("fresh")
def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRICKWORK_NATIVE", "0")
    assert native_problem() == "BRICKWORK_NATIVE=0 turns it off"
    assert_falls_back_to_torch()


def test_a_folder_that_cannot_be_made_leaves_torch(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh.write_text("a file, not a folder")
    assert native_problem() is not None
    assert_falls_back_to_torch()


def test_code_that_others_can_write_is_not_loaded(built: Path, tmp_path: Path) -> None:
    built.chmod(0o770)
    assert "must be this user's own and not writable by others" in (native_problem() or "")
    built.chmod(0o700)
    built.parent.chmod(0o777)
    forget()
    assert "must be this user's own" in (native_problem() or "")
    built.parent.chmod(0o700)
    built.symlink_to(built.rename(tmp_path / "elsewhere.so"))
    forget()
    assert "must be this user's own" in (native_problem() or "")


def test_what_is_in_the_cache_is_loaded_and_not_compiled(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_native, "_compile", lambda *_: pytest.fail("it compiles"))
    assert native_problem() is None
    assert list(built.parent.iterdir()) == [built]


def test_a_compiler_is_called_by_the_name_that_it_was_found_by(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_compiler = shutil.which("cc")
    if need_compiler is None:
        pytest.skip("there is no C compiler here")
    # As ccache does it: a link named like the compiler to a program that asks for its own name.
    script = compiler_that(tmp_path, f'case $0 in */cc) exec {need_compiler} "$@";; esac; exit 9')
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cc").symlink_to(script)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    assert native_problem() is None
    assert len(list(fresh.glob("*.so"))) == 1


@pytest.mark.usefixtures("fresh")
def test_a_command_that_cannot_be_read_leaves_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc 'unfinished")
    assert "is no command: No closing quotation" in (native_problem() or "")
    assert_falls_back_to_torch()


def test_another_library_in_its_place_leaves_torch(built: Path) -> None:
    built.unlink()  # what is loaded already must not be written over
    source = built.with_suffix(".c")
    source.write_text("int nothing(void) { return 0; }")
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(built)], check=True)
    built.chmod(0o700)
    assert "is another library" in (native_problem() or "")
    assert_falls_back_to_torch()


def test_a_cache_named_without_a_slash_is_a_folder(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(built.parent)
    monkeypatch.setenv("BRICKWORK_CACHE", ".")
    assert native_problem() is None


def test_two_build_at_once(built: Path) -> None:
    built.unlink()
    with ThreadPoolExecutor(2) as pool:
        made = [work.result() for work in [pool.submit(sparse_native._built) for _ in range(2)]]
    assert set(made) == {built}
    assert list(built.parent.iterdir()) == [built]
    assert sparse_native._open(built).brickwork_level_available(0) == 1


def test_triton_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    problem = sparse_triton.misfit(Records.pack(new_ffn()))
    if sparse_triton.triton is None:
        assert problem == "triton is not installed (pip install 'brickwork[gpu]')"
    else:
        assert problem == "it computes on CUDA, and these weights are on cpu"


def test_a_policy_chooses_by_the_next_measured_number_of_tokens() -> None:
    policy = SparsePolicy({1: 0.8, 4: 0.5, 16: 0.0})
    assert policy.choose(0.79, 1) == "sparse"
    assert policy.choose(0.8, 1) == "dense"
    assert policy.choose(0.6, 2) == "dense"
    assert policy.choose(0.4, 3) == "sparse"
    assert policy.choose(0.0, 16) == "dense"
    assert policy.choose(0.01, 17) == "dense"


@pytest.mark.parametrize("run", [1, 8])
def test_a_crossover_is_a_density_and_is_measured_once(run: int) -> None:
    records = Records.pack(new_ffn(64, 96))
    found = crossover(records, path="torch", run=run)
    assert list(found.crossovers) == [1, 2, 4, 8, 16]
    assert all(0.0 <= density <= 1.0 for density in found.crossovers.values())
    like = replace(records, weights=records.weights.clone(), activation=ACT2FN["silu"])
    assert like.activation is not records.activation
    assert crossover(like, path="torch", run=run) is found


def test_a_crossover_refuses_runs_that_do_not_fit() -> None:
    with pytest.raises(ConfigurationError, match="runs of 51 neurons, but these records have 50"):
        crossover(Records.pack(new_ffn()), run=51)
