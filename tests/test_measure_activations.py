"""Collected rows: what a forward of one instance says, however it is batched, sharded or killed."""

import os
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from brickwork.errors import DataError
from brickwork.measure.activations import Wanted, block_name, collect, layout_of
from brickwork.measure.rows import Layout, Rows, open_rows
from brickwork.model.ffn import FFN, ffn_of
from brickwork.model.heads import heads_of
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.parts import layers_of, part_of, role_path, row_of
from brickwork.model.train import Encoded
from tests.test_model_taps import gains_after
from tests.tiny import FAMILIES, tiny_model

# Sums over tokens in another order, batched and padded, in float32.
TOLERANCE = {"rtol": 2e-4, "atol": 1e-5}
EVERYTHING = Wanted(("mean_abs", "mean", "positive", "max"), ("prompt", "response"))


def instances(count: int = 9, seed: int = 0) -> list[Encoded]:
    chance = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (count, 2), generator=chance).tolist()
    return [
        Encoded(torch.randint(2, 100, (p + r,), generator=chance).tolist(), p) for p, r in lengths
    ]


def collected(
    loaded: LoadedModel, sequences: list[Encoded], folder: Path, wanted: Wanted, dtype: str
) -> Rows:
    layout = layout_of(loaded.model, len(sequences), wanted, dtype=dtype)
    rows = open_rows(folder, layout)
    collect(loaded, sequences, rows, wanted)
    return rows


def slow_activations(model: nn.Module, layer: int, sequence: Encoded) -> Tensor:
    """Every neuron's activation for every token, from the FFN's input in a plain forward."""
    row, found = row_of(model), []
    ffn = ffn_of(model, layer)
    role = (
        "mlp"
        if not isinstance(ffn, FFN)
        else "mlp.gate_up"
        if "mlp.gate_up" in row.roles
        else "mlp.up"
    )
    module = model.get_submodule(row.path(role, layer) or "")
    hook = module.register_forward_pre_hook(lambda _m, args: found.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        model(torch.tensor([sequence.ids]))
        hook.remove()
        x = found[0]
        if isinstance(ffn, FFN):
            return ffn.activations(x)
        weights, chosen = ffn.route(x)
        spread = torch.zeros(len(x), len(ffn.experts), ffn.experts[0].neurons)
        for token, (shares, numbers) in enumerate(zip(weights, chosen, strict=True)):
            for share, number in zip(shares, numbers.tolist(), strict=True):
                spread[token, number] = share * ffn.experts[number].activations(x[token])
    return spread.flatten(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_neuron_rows_equal_a_forward_of_each_instance_alone(family: str, tmp_path: Path) -> None:
    loaded, sequences = wrap_model(tiny_model(family)), instances()
    rows = collected(loaded, sequences, tmp_path, EVERYTHING, "float32")
    layers, parts = range(layers_of(loaded.model)), ("prompt", "response")
    for layer, (i, sequence), part in product(layers, enumerate(sequences), parts):
        whole, start = slow_activations(loaded.model, layer, sequence), sequence.response_start
        h = whole[:start] if part == "prompt" else whole[start:]
        expected = {
            "mean_abs": h.abs().mean(0),
            "mean": h.mean(0),
            "positive": (h > 0).float().mean(0),
            "max": h.abs().amax(0),
        }
        for name, row in expected.items():
            found = rows.read(block_name("neurons", layer, name, part))[i]
            torch.testing.assert_close(found, row, **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_head_and_block_rows_equal_a_forward_of_each_instance_alone(
    family: str, tmp_path: Path
) -> None:
    loaded, sequences = wrap_model(tiny_model(family)), instances(5)
    rows = collected(loaded, sequences, tmp_path, Wanted(), "float32")
    model, seen = loaded.model, {}
    o, width = part_of(model, "attn.o", 1), heads_of(model.config, 1).head_dim
    weight = model.get_parameter(o.weight).detach()
    oriented = weight if o.out_axis == 0 else weight.T
    columns = (oriented * gains_after(model, "norms.attn_out", 1)).unflatten(1, (-1, width))
    block = model.get_submodule(role_path(model, "block", 1) or "")
    model.get_submodule(o.module).register_forward_pre_hook(
        lambda _m, args: seen.update(z=args[0].reshape(-1, columns.shape[1], width))
    )
    block.register_forward_hook(
        lambda _m, args, out: seen.update(
            x=args[0][0], y=(out if isinstance(out, Tensor) else out[0])[0]
        )
    )
    for i, sequence in enumerate(sequences):
        with torch.no_grad():
            model(torch.tensor([sequence.ids[: sequence.response_start]]))
        lengths = torch.einsum("dhj,phj->phd", columns, seen["z"]).norm(dim=-1).mean(0)
        found = rows.read(block_name("heads", 1, "output_norm"))[i]
        torch.testing.assert_close(found, lengths, **TOLERANCE)
        change = ((seen["y"] - seen["x"]).norm(dim=-1) / seen["x"].norm(dim=-1)).mean()
        found = rows.read(block_name("layers", 1, "change"))[i, 0]
        torch.testing.assert_close(found, change, **TOLERANCE)


def test_half_precision_rows_are_the_rounded_ones(tmp_path: Path) -> None:
    loaded, sequences = wrap_model(tiny_model("llama")), instances()
    exact = collected(loaded, sequences, tmp_path / "a", Wanted(), "float32")
    half = collected(loaded, sequences, tmp_path / "b", Wanted(), "float16")
    name = block_name("neurons", 0, "mean_abs")
    assert torch.equal(half.read(name), exact.read(name).half())
    assert (tmp_path / "b" / f"{name}.npy").stat().st_size == 128 + 9 * 48 * 2


def test_shards_together_make_what_one_run_makes(tmp_path: Path) -> None:
    loaded, sequences = wrap_model(tiny_model("gpt2")), instances(300)
    whole = collected(loaded, sequences, tmp_path / "a", Wanted(), "float32")
    layout = layout_of(loaded.model, 300, Wanted())
    name = block_name("neurons", 1, "mean_abs")
    for k in (1, 2):
        rows = open_rows(tmp_path / "b", layout, writer=f"{k}-of-2")
        with pytest.raises(DataError, match=r"of 300 rows in .* are not there yet"):
            rows.read(name)
        collect(loaded, sequences, rows, Wanted(), shard=(k, 2))
    torch.testing.assert_close(rows.read(name), whole.read(name), **TOLERANCE)


def test_a_second_run_computes_nothing(tmp_path: Path) -> None:
    loaded, sequences = wrap_model(tiny_model("llama")), instances()
    collected(loaded, sequences, tmp_path, Wanted(), "float32")
    loaded.model.base_model.forward = None  # would fail if it were called
    told: list[float] = []
    layout = layout_of(loaded.model, 9, Wanted())
    collect(loaded, sequences, open_rows(tmp_path, layout), Wanted(), advance=told.append)
    assert sum(told) == 9


CHILD = """
import sys
from pathlib import Path
from tests.test_measure_activations import *
import brickwork.measure.activations as activations
import brickwork.measure.rows as rows_module
rows_module.SECONDS_PER_CHECKPOINT = 0
activations.TOKENS_PER_BATCH = 24
loaded, sequences = wrap_model(tiny_model("llama")), instances(200)
rows = open_rows(Path(sys.argv[1]), layout_of(loaded.model, 200, Wanted()))
collect(loaded, sequences, rows, Wanted(), advance=lambda steps: print("done", flush=True))
"""


def test_a_killed_run_is_taken_up_where_it_was(tmp_path: Path) -> None:
    words = [sys.executable, "-c", CHILD, str(tmp_path / "rows")]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    assert process.stdout is not None
    for _ in range(5):
        assert process.stdout.readline() == "done\n"
    os.kill(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait()
    loaded, sequences = wrap_model(tiny_model("llama")), instances(200)
    rows = open_rows(tmp_path / "rows", layout_of(loaded.model, 200, Wanted()))
    before = rows.done.clone()
    assert 0 < int(before.sum()) < 200
    name = block_name("neurons", 0, "mean_abs")
    kept = np.load(tmp_path / "rows" / f"{name}.npy")[before.numpy()]
    collect(loaded, sequences, rows, Wanted())
    assert np.array_equal(rows.read(name).numpy()[before.numpy()], kept)
    fresh = collected(loaded, sequences, tmp_path / "fresh", Wanted(), "float32")
    torch.testing.assert_close(rows.read(name), fresh.read(name), **TOLERANCE)


def test_rows_of_something_else_are_not_mixed_in(tmp_path: Path) -> None:
    open_rows(tmp_path, Layout("a", 3, {"x": 2}))
    with pytest.raises(
        DataError, match=r"another model, data set or setting \(key, samples differ\)"
    ):
        open_rows(tmp_path, Layout("b", 4, {"x": 2}))


def test_values_that_the_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    rows = open_rows(tmp_path, Layout("a", 3, {"x": 2}, "float16"))
    with pytest.raises(DataError, match=r"float16 cannot \(largest 100000\); take float32 rows"):
        rows.write([1], {"x": torch.tensor([[1.0, 1e5]])})


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the rows need 8,000,000,000,000,000 bytes"):
        open_rows(tmp_path / "rows", Layout("a", 10**9, {"x": 2 * 10**6}))
    assert not list((tmp_path / "rows").iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [(np.zeros((3, 9), np.float32), r"of shape \(3, 9\), not float32 of shape \(3, 2\)"),
     (None, "cannot be read")],
)  # fmt: skip
def test_damaged_rows_are_named(tmp_path: Path, content: "np.ndarray | None", message: str) -> None:
    rows = open_rows(tmp_path, Layout("a", 3, {"x": 2}))
    rows.write([0, 1, 2], {"x": torch.ones(3, 2)})
    rows.checkpoint()
    if content is None:
        (tmp_path / "x.npy").write_bytes(b"no array")
    else:
        np.save(tmp_path / "x.npy", content)
    with pytest.raises(DataError, match=message):
        open_rows(tmp_path, Layout("a", 3, {"x": 2})).read("x")
