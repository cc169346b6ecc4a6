"""continue_training: what it trains and leaves to the bit, what it replays, and its document."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from brickwork.brick.durable import write_file
from brickwork.brick.files import json_bytes
from brickwork.errors import ConfigurationError, DataError
from brickwork.grow.curve import CURVE_FILE, FORMAT, Curve, curve_problems
from brickwork.grow.fresh import Fresh
from brickwork.grow.training import Replay, Watch, continue_training
from brickwork.measure.perplexity import response_losses
from brickwork.model.fit import FitRecipe, fit, training_batches
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.train import Encoded
from brickwork.report.document import read_document
from tests.tiny import FAMILIES, tiny_model

RECIPE = FitRecipe(1e-2, steps=5, tokens_per_batch=60, warm_up=2, weight_decay=0.3)


def copying(count: int = 24, seed: int = 0, first: int = 4) -> list[Encoded]:
    chance = torch.Generator().manual_seed(seed)
    words = torch.randint(first, first + 40, (count, 3), generator=chance).tolist()
    return [Encoded([*w, 3, *w], 4) for w in words]


def some_rows_of_each_matrix(model: nn.Module) -> list[Fresh]:
    """The last 3 rows of every matrix, and columns 1 and 2 of the first."""
    named = [(name, p) for name, p in model.named_parameters() if p.dim() > 1]
    rows = [
        Fresh(parameter=name, axis=p.dim() - 2, spans=((p.shape[-2] - 3, p.shape[-2]),))
        for name, p in named
    ]
    return [*rows, Fresh(parameter=named[0][0], axis=1, spans=((1, 3),))]


def bits(tensor: Tensor) -> Tensor:
    """Zeros of different signs are different."""
    return (
        tensor.detach()
        .contiguous()
        .view(torch.int16 if tensor.element_size() == 2 else torch.int32)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_old_numbers_stay_to_the_bit_while_new_ones_learn(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family).to(dtype)
    with torch.no_grad():  # a negative zero shows the slightest touch
        for p in model.parameters():
            p.view(-1)[::3] *= -0.0
    loaded = wrap_model(model)
    fresh = some_rows_of_each_matrix(model)
    asked = [p.requires_grad for p in model.parameters()]
    before = {name: bits(p).clone() for name, p in model.named_parameters()}
    continue_training(loaded, copying(), RECIPE, fresh=fresh)
    rows = {entry.parameter: entry for entry in fresh[:-1]}
    learned = 0
    for number, (name, p) in enumerate(model.named_parameters()):
        changed = bits(p) != before[name]
        if name not in rows:
            assert not changed.any()
            continue
        new = torch.zeros_like(p, dtype=torch.bool)
        new[..., -3:, :] = True
        if name == fresh[-1].parameter:
            new[:, 1:3] = True
        assert not (changed & ~new).any(), f"{number} {name}"
        learned += int(changed.any())
    assert learned > len(rows) / 2  # rows of tokens that do not occur get no gradient
    assert model.dtype == dtype
    assert [p.requires_grad for p in model.parameters()] == asked
    assert all(p.grad is None for p in model.parameters())


def test_new_entries_learn_as_in_a_loop_with_masked_gradients_in_float32() -> None:
    loaded, other = wrap_model(tiny_model("qwen2")), tiny_model("qwen2")
    assert other.get_output_embeddings().weight is other.get_input_embeddings().weight  # tied
    embedding = "model.embed_tokens.weight"
    fresh = [Fresh(parameter=embedding, axis=0, spans=((10, 30),))]
    recipe = replace(RECIPE, weight_decay=0.0)
    continue_training(loaded, copying(), recipe, fresh=fresh)
    weight = other.get_parameter(embedding)
    mask = torch.zeros(len(weight), 1)
    mask[10:30] = 1
    hook = weight.register_hook(lambda grad: grad * mask)
    fit(other, [weight], training_batches(copying(), recipe), recipe)
    hook.remove()
    torch.testing.assert_close(
        loaded.model.get_parameter(embedding), weight, atol=1e-6, rtol=0
    )  # the norm of the gradient is summed in another order


def test_a_parameter_that_is_new_as_a_whole_is_trained_as_a_whole() -> None:
    model = tiny_model("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    before = {n: p.clone() for n, p in model.named_parameters()}
    curve = continue_training(wrap_model(model), copying(), RECIPE, fresh=[Fresh(parameter=name)])
    assert [n for n, p in model.named_parameters() if not torch.equal(p, before[n])] == [name]
    assert curve.trained == model.get_parameter(name).numel()
    assert curve.parameters == sum(p.numel() for p in model.parameters())


def test_without_new_entries_it_is_plain_training() -> None:
    loaded, other = wrap_model(tiny_model("llama")), tiny_model("llama")
    curve = continue_training(loaded, copying(), RECIPE)
    losses = fit(other, other.parameters(), training_batches(copying(), RECIPE), RECIPE)
    assert list(curve.training) == losses
    pairs = zip(loaded.model.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_share_of_each_batch_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = wrap_model(tiny_model("llama"))
    seen: list[Tensor] = []
    base = loaded.model.forward

    def watching(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["input_ids"])
        return base(*args, **kwargs)

    monkeypatch.setattr(loaded.model, "forward", watching)
    old = copying(seed=1, first=60)
    recipe = replace(RECIPE, tokens_per_batch=7 * 12, steps=6)
    curve = continue_training(loaded, copying(36), recipe, replay=Replay(old, 0.25))
    shares = [(ids[:, 0] >= 60).float().mean().item() for ids in seen]
    assert shares == [0.25] * 6
    assert curve.share == 0.25
    assert curve.replayed == len(old)


def test_losses_are_those_of_the_model_at_the_time() -> None:
    loaded, other = wrap_model(tiny_model("llama")), tiny_model("llama")
    sets = {"b": copying(5, seed=2), "a": copying(6, seed=3, first=50)}
    curve = continue_training(loaded, copying(), RECIPE, watch=Watch(sets, every=2))
    assert curve.steps == (0, 2, 4, 5)
    assert list(curve.losses) == ["b", "a"]

    def losses(model: Any) -> dict[str, float]:
        return response_losses(model, [*sets["b"], *sets["a"]], ["b"] * 5 + ["a"] * 6)

    states: list[dict[str, float]] = [losses(other)]

    def note(step: int, _steps: int, _loss: float) -> None:
        states.append(losses(other))

    fit(other, other.parameters(), training_batches(copying(), RECIPE), RECIPE, report=note)
    for name in sets:
        expected = [states[step][name] for step in curve.steps]
        assert list(curve.losses[name]) == expected
    assert curve.change("b") == curve.losses["b"][-1] - curve.losses["b"][0]


def test_what_is_watched_during_masked_training_is_the_model_as_it_is_by_then() -> None:
    model = tiny_model("llama")
    sets = {"a": copying(6, seed=3)}
    fresh = some_rows_of_each_matrix(model)
    curve = continue_training(wrap_model(model), copying(), RECIPE, fresh=fresh, watch=Watch(sets))
    assert curve.steps == (0, 5)
    assert curve.losses["a"][-1] == response_losses(model, sets["a"], ["a"] * 6)["a"]
    assert curve.change("a") < 0


def test_the_fingerprint_is_taken_anew() -> None:
    loaded = wrap_model(tiny_model("llama"))
    before = loaded.base.fingerprint.weights
    continue_training(loaded, copying(), RECIPE)
    assert loaded.base.fingerprint.weights != before
    assert loaded.base == wrap_model(loaded.model).base


@pytest.fixture
def curve() -> Curve:
    sets = {"a": copying(6, seed=3)}
    return continue_training(
        wrap_model(tiny_model("llama")), copying(), RECIPE, watch=Watch(sets, every=2)
    )


def test_the_document_survives_a_file(curve: Curve, tmp_path: Path) -> None:
    write_file(tmp_path / CURVE_FILE, json_bytes(CURVE_FILE, curve.model_dump(mode="json")))
    again = read_document(
        tmp_path / CURVE_FILE, Curve, curve_problems, format=FORMAT, what="a training"
    )
    assert again == curve
    assert json.loads((tmp_path / CURVE_FILE).read_text())["recipe"]["rate"] == 1e-2


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"steps": (0, 2, 5)}, "losses.a: 4 numbers at 3 steps"),
        ({"steps": (0, 4, 2, 5)}, "do not rise from 0"),
        ({"instances": {}}, "losses: are of"),
        ({"trained": 0}, "trained: 0 of"),
        ({"training": ()}, "training: has no step"),
        ({"losses": {"a": (1.0, 1.0, 1.0, -1.0)}}, "losses.a: are not all at least 0"),
    ],
)
def test_a_document_that_contradicts_itself_is_noticed(
    curve: Curve, changes: dict[str, Any], complaint: str
) -> None:
    found = list(curve_problems(curve.model_copy(update=changes)))
    assert any(complaint in problem for problem in found)
    assert not list(curve_problems(curve))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_refuses_a_share_that_is_none(share: float) -> None:
    loaded = wrap_model(tiny_model("llama"))
    with pytest.raises(ConfigurationError, match="of each batch was to be replayed; name one abov"):
        continue_training(loaded, copying(), RECIPE, replay=Replay(copying(), share))


def test_refuses_nothing_to_train_on_replay_or_watch() -> None:
    loaded: LoadedModel = wrap_model(tiny_model("llama"))
    with pytest.raises(DataError, match="nothing to train on"):
        continue_training(loaded, [], RECIPE)
    with pytest.raises(DataError, match="nothing to train on"):
        continue_training(loaded, copying(), RECIPE, replay=Replay([], 0.5))
    with pytest.raises(ConfigurationError, match=r"every 50 steps on \{'a': 0\} instances"):
        continue_training(loaded, copying(), RECIPE, watch=Watch({"a": []}))
    with pytest.raises(ConfigurationError, match="every 0 steps"):
        continue_training(loaded, copying(), RECIPE, watch=Watch({}, every=0))
    with pytest.raises(ConfigurationError, match="name the model that the growth wrote"):
        continue_training(loaded, copying(), RECIPE, fresh=[Fresh(parameter="no.such")])
