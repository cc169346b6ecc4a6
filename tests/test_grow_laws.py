"""Every growth of every family: what it promises holds, or it is refused with the reason."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from brickwork.errors import BrickworkError, GrowthError
from brickwork.grow.fresh import fresh_masks
from brickwork.grow.growths import GrowthRow, growths
from brickwork.grow.planning import grow
from brickwork.grow.recipe import GrowthRecipe, RecipeStep, grow_by_recipe, load_grown
from brickwork.grow.spread import added, repeated, spread_axis
from brickwork.model.load import LoadedModel, load_model, wrap_model
from brickwork.model.parameters import Axis, Segment
from brickwork.model.sizes import config_with, model_of, outline_of
from brickwork.model.weights import ModelWeights, in_memory
from brickwork.reference.paths import model_folder
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

# What each row is asked for; a row without an entry fails.
ASKED: Mapping[tuple[str, str], tuple[dict[str, Any], ...]] = {
    ("width", "split"): ({"neurons": 80}, {"times": 2, "shares": "even"}),
    ("width", "zero"): ({"times": 1.5},),
    ("heads", "groups"): ({"kv_heads": 4}, {"kv_heads": 4, "start": "zero"}),
    ("heads", "queries"): ({"heads": 8}, {"heads": 8, "start": "zero"}),
    ("heads", "wider"): ({"times": 2}, {"times": 3}),
    ("hidden", "zero-extend"): ({"size": 48},),
    ("hidden", "duplicate"): ({"times": 2},),
    ("hidden", "duplicate-some"): ({"size": 48},),
    ("depth", "identity"): ({"after": [0, 0, 1]},),
    ("depth", "blocks"): ({"blocks": 2},),
    ("depth", "copy"): ({"after": [1]},),
    ("depth", "stack"): ({"overlap": 0},),
    ("vocab", "mean"): ({"tokens": ["the an", "zz"]},),
    ("vocab", "pieces"): ({"tokens": [f"the {n}" for n in range(14)]},),
    ("experts", "upcycle"): ({"experts": 4, "top_k": 2}, {"experts": 4, "redrawn": 0.5}),
    ("experts", "copies"): ({"times": 2}, {"times": 3, "shares": "even"}),
    ("context", "extend"): ({"tokens": 96},),
    ("context", "dynamic"): ({"tokens": 96},),
    ("context", "linear"): ({"tokens": 96},),
    ("context", "yarn"): ({"tokens": 96},),
}
_BOUND = ("gpt2", "gpt_neox", "opt")  # hidden size is heads times their width
_MIXTURES = ("mixtral", "qwen3_moe")
_DENSE = tuple(family for family in FAMILIES if family not in _MIXTURES)
# Which families are refused, and a word of the reason.
REFUSED: Mapping[tuple[str, str], tuple[tuple[str, ...], str]] = {
    ("heads", "groups"): ((*_BOUND, "olmo2"), "hidden size is always|one norm over all heads"),
    ("heads", "queries"): ((*_BOUND, "olmo2"), "hidden size is always|one norm over all heads"),
    ("heads", "wider"): (
        (*_BOUND, "qwen3", "gemma3_text", "qwen3_moe", "olmo2"),
        "hidden size is always|norms queries|one norm over all heads",
    ),
    ("hidden", "zero-extend"): (_BOUND, "LayerNorm subtracts the mean"),
    ("hidden", "duplicate-some"): (_BOUND, "heads times their width"),
    ("experts", "upcycle"): (
        tuple(f for f in FAMILIES if f not in ("llama", "mistral", "qwen3")),
        "no family that can be written|shared expert|already",
    ),
    ("experts", "copies"): (_DENSE, "which has none"),
    # A rotation of two numbers cannot be slowed down; Phi-3 has a scaling of its own.
    ("context", "dynamic"): (("gpt2", "opt", "gpt_neox", "phi3"), "no rotary|division|could not"),
    ("context", "linear"): (("gpt2", "opt", "phi3"), "no rotary|could not"),
    ("context", "yarn"): (("gpt2", "opt", "phi3"), "no rotary|could not"),
}
# Sums in another order, in float32: measured up to 1.3e-5 for logits of up to 5.
TOLERANCE = 1e-4
CASES = [
    (family, key, number)
    for family in FAMILIES
    for key, asked in ASKED.items()
    for number in range(len(asked))
]


GREEDY: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}


def texts(vocabulary: int = 100) -> Tensor:
    return torch.randint(2, vocabulary, (2, 24), generator=torch.Generator().manual_seed(0))


@cache
def old_model(family: str) -> LoadedModel:
    """One for all tests, which no growth may change."""
    return wrap_model(tiny_model(family), tiny_tokenizer(), family)


@cache
def said_by_old(family: str) -> tuple[Tensor, Tensor]:
    """The logits of the old model, and what it generates."""
    old = old_model(family)
    return logits(old, texts()), old.model.generate(texts(), **GREEDY)  # type: ignore[operator]


def logits(loaded: LoadedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = loaded.model(input_ids=ids).logits
    return found


def grown_by(old: LoadedModel, part: str, name: str, options: Mapping[str, Any]) -> LoadedModel:
    recipe = GrowthRecipe(steps=(RecipeStep(part=part, by=name, options=options),))
    planned = grow_by_recipe(ModelWeights(old.model), recipe, tokenizer=old.tokenizer)
    return load_grown(planned, old)


def test_every_row_is_asked_for() -> None:
    assert set(ASKED) == set(growths())


@pytest.mark.parametrize(("family", "key", "number"), CASES, ids=str)
def test_a_growth_keeps_what_its_row_says(family: str, key: tuple[str, str], number: int) -> None:
    old, options = old_model(family), ASKED[key][number]
    refused, reason = REFUSED.get(key, ((), ""))
    if family in refused:
        with pytest.raises(BrickworkError) as caught:
            grown_by(old, *key, options)
        assert re.search(reason, str(caught.value)), str(caught.value)
        return
    (before, answer), ids = said_by_old(family), texts()
    new = grown_by(old, *key, options)
    after = logits(new, ids)
    known = len(tiny_tokenizer()) if key[0] == "vocab" else before.shape[-1]
    distance = float((before - after[..., : before.shape[-1]])[..., :known].abs().max())
    row: GrowthRow = growths()[key]
    if row.keeps == "nothing promised" or options.get("redrawn"):
        # The control: the measure sees what is not preserving.
        assert distance > 0.1
        return
    assert distance < TOLERANCE
    assert torch.equal(before, logits(old, ids)), "the old model is as it was"
    if key[0] != "vocab":  # new tokens may be likelier than old ones
        assert torch.equal(answer, new.model.generate(ids, **GREEDY))  # type: ignore[operator]


TRAINED = [
    (family, *key, asked[0])
    for family in ("llama", "qwen3", "gemma3_text", "gpt2", "mixtral")
    for key, asked in ASKED.items()
    if key[0] != "context" and family not in REFUSED.get(key, ((), ""))[0]
]


@pytest.mark.parametrize(("family", "part", "name", "options"), TRAINED, ids=str)
def test_new_numbers_get_gradients(
    family: str, part: str, name: str, options: Mapping[str, Any]
) -> None:
    """At once, or after one step where what follows them is zero at first."""
    old = old_model(family)
    weights = ModelWeights(old.model)
    planned = grow(weights, part, name, options, tokenizer=old.tokenizer)
    recipe = GrowthRecipe(steps=(RecipeStep(part=part, by=name, options=options),))
    new = load_grown(grow_by_recipe(weights, recipe, tokenizer=old.tokenizer), old)
    model, moved = new.model, set()
    masks = fresh_masks(model, planned.weights.fresh)
    assert masks
    descent = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.randint(2, model.config.vocab_size, (4, 24), generator=torch.Generator())
    for _ in range(3):
        descent.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        for path, mask in masks.items():
            grad = model.get_parameter(path).grad
            if grad is not None and (grad if mask is None else grad[mask]).any():
                moved.add(path)
        descent.step()
    assert set(masks) == moved


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shares", ["even", "uneven"])
@pytest.mark.parametrize("copies", [2, 3, 5])
def test_copies_sum_to_the_bit_to_what_was_divided(
    dtype: torch.dtype, shares: Literal["even", "uneven"], copies: int
) -> None:
    generator = torch.Generator().manual_seed(copies)
    old = torch.randn(16, 50, generator=generator).to(dtype)
    spread = added(16, 16 * copies, source=repeated(16, 16 * copies), shares=shares)
    reads = Axis((Segment("neurons", 16),), "reads")
    for axis, tensor in enumerate((old, old.T)):
        new = spread_axis(tensor, axis, reads, {"neurons": spread}, generator=generator)
        # float64 holds the sums of such numbers without rounding.
        whole = new.double().unflatten(axis, (copies, 16)).sum(axis)
        assert torch.equal(whole, tensor.double())


@pytest.mark.parametrize(
    ("key", "options"),
    [
        (("width", "split"), {"times": 3}),
        (("hidden", "duplicate"), {"times": 2}),
        (("experts", "upcycle"), {"experts": 4}),
        (("hidden", "zero-extend"), {"times": 4}),
        (("heads", "wider"), {"times": 4}),
    ],
    ids=str,
)
def test_weights_in_bfloat16_lose_nothing(key: tuple[str, str], options: dict[str, Any]) -> None:
    """Both computed in float32, so that only what the weights have lost would show."""
    old = wrap_model(tiny_model("llama"), None, "llama")
    for parameter in old.model.parameters():
        # Not model.bfloat16(): that would round the rotation's frequencies too.
        parameter.data = parameter.data.bfloat16()
    new = grown_by(old, *key, options)
    found = [logits(wrap_model(m.model.float(), None, "m"), texts()) for m in (new, old)]
    assert torch.allclose(*found, atol=TOLERANCE, rtol=0)


def test_only_factors_that_a_short_format_rounds_are_told() -> None:
    def notes(dtype: torch.dtype, times: int) -> tuple[str, ...]:
        step = RecipeStep(part="hidden", by="zero-extend", options={"times": times})
        weights = ModelWeights(tiny_model("llama").to(dtype))
        return grow_by_recipe(weights, GrowthRecipe(steps=(step,))).notes

    assert "final_norm" in notes(torch.bfloat16, 2)[0]
    assert not notes(torch.bfloat16, 4)
    assert not notes(torch.float32, 2)


def test_float64_is_not_rounded_to_float32() -> None:
    model = tiny_model("llama").double()
    grown = grow(ModelWeights(model), "hidden", "zero-extend", {"size": 48}).weights
    expected = model.get_parameter("model.norm.weight").detach() * (32 / 48) ** 0.5
    # One rounding in float64; one in float32 would be 6e-8.
    torch.testing.assert_close(grown.tensor("model.norm.weight")[:32], expected, rtol=1e-15, atol=0)


def test_a_longer_context_scales_attention_as_before_under_longrope() -> None:
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "partial_rotary_factor": 1.0,
    }  # fmt: skip
    entries = {"rope_parameters": rope, "original_max_position_embeddings": 32}
    like = old_model("phi3")
    config = config_with(like.model.config, entries)
    old = model_of(config, in_memory(ModelWeights(like.model)), like)
    new = grown_by(old, "context", "extend", {"tokens": 96})
    assert torch.allclose(logits(old, texts()), logits(new, texts()), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("entries", "key", "options", "reason"),
    [
        ({"do_layer_norm_before": False}, ("depth", "identity"), {"after": [0]}, "every layer"),
        ({"do_layer_norm_before": False}, ("hidden", "duplicate"), {"times": 2}, "a last norm"),
        ({"layer_norm_elementwise_affine": False}, ("hidden", "duplicate"), {"times": 2}, "a last"),
    ],
)  # fmt: skip
def test_models_that_cannot_keep_the_promise_are_refused(
    entries: dict[str, Any], key: tuple[str, str], options: dict[str, Any], reason: str
) -> None:
    config = config_with(FAMILIES["opt"](), entries)
    old = ModelWeights(outline_of(config, torch.float32))
    with pytest.raises(GrowthError, match=reason):
        grow(old, *key, options)


def test_what_is_fresh_is_what_the_growth_added() -> None:
    old = old_model("llama")
    planned = grow(ModelWeights(old.model), "width", "split", {"neurons": 64})
    found = {entry.parameter: entry for entry in planned.weights.fresh}
    assert found["model.layers.0.mlp.up_proj.weight"].axis == 0
    assert found["model.layers.0.mlp.down_proj.weight"].axis == 1
    assert all(entry.spans == ((48, 64),) for entry in found.values())
    assert {path.rpartition(".mlp.")[2] for path in found} == {
        "gate_proj.weight", "up_proj.weight", "down_proj.weight",
    }  # fmt: skip


def test_growths_follow_each_other_and_remember_what_is_fresh() -> None:
    old = old_model("qwen3")
    steps = (
        RecipeStep(part="width", by="zero", options={"neurons": 64}),
        RecipeStep(part="depth", by="identity", options={"after": [0]}),
        RecipeStep(part="hidden", by="duplicate", options={"times": 2}),
    )
    planned = grow_by_recipe(ModelWeights(old.model), GrowthRecipe(steps=steps))
    new = load_grown(planned, old)
    assert torch.allclose(logits(old, texts()), logits(new, texts()), atol=TOLERANCE, rtol=0)
    down = [e for e in planned.fresh if e.parameter == "model.layers.0.mlp.down_proj.weight"]
    assert {entry.axis: entry.spans for entry in down} == {0: ((32, 64),), 1: ((48, 64),)}
    whole = [e for e in planned.fresh if e.parameter == "model.layers.1.mlp.down_proj.weight"]
    assert [entry.axis for entry in whole] == [None]


def test_uneven_copies_do_not_stay_alike_and_even_ones_do() -> None:
    """Why shares are uneven: equal copies get equal gradients for ever."""
    apart = {}
    for shares in ("even", "uneven"):
        new = grown_by(old_model("llama"), "width", "split", {"times": 2, "shares": shares})
        ids = texts()
        new.model(input_ids=ids, labels=ids).loss.backward()
        grad = new.model.get_parameter("model.layers.0.mlp.up_proj.weight").grad
        assert grad is not None
        apart[shares] = float((grad[:48] - grad[48:]).abs().max() / grad.abs().max())
    # Even halves are exact in binary, so that their gradients differ by rounding only.
    assert apart["even"] < 1e-5
    assert apart["uneven"] > 1e-2


def test_the_router_of_a_new_mixture_uses_all_experts() -> None:
    new = grown_by(old_model("llama"), "experts", "upcycle", {"experts": 4, "top_k": 2})
    states = torch.randn(400, 32, generator=torch.Generator().manual_seed(0))
    router = new.model.get_submodule("model.layers.0.mlp.gate")
    chosen = router(states)[2].flatten()
    load = torch.bincount(chosen, minlength=4) / 800
    assert load.min() > 0.05, "zeros would send everything to two experts"


def test_equal_seeds_draw_equal_numbers_and_others_do_not() -> None:
    def drawn(seed: int) -> Tensor:
        old = old_model("llama")
        planned = grow(ModelWeights(old.model), "width", "zero", {"neurons": 64}, seed=seed)
        return planned.weights.tensor("model.layers.0.mlp.up_proj.weight")[48:]

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


@pytest.mark.slow
@pytest.mark.parametrize(("key", "number"), sorted({case[1:] for case in CASES}), ids=str)
def test_the_reference_model_grows_as_the_tiny_ones_do(key: tuple[str, str], number: int) -> None:
    old = load_model(str(model_folder()), device="cpu", dtype="float32", name="reference")
    config = old.model.config
    asked = {
        "neurons": 1536, "kv_heads": 4, "heads": 8, "size": 384, "tokens": 2048,
        "after": [0, 3, 7], "blocks": 4, "overlap": 2,
    }  # fmt: skip
    options = {name: asked.get(name, value) for name, value in ASKED[key][number].items()}
    if key[0] == "vocab":
        options["tokens"] = [" zyxwvut", " configurable-model"]
    if key == ("experts", "copies"):
        old = grown_by(old, "experts", "upcycle", {"experts": 4})
    ids = texts(config.vocab_size)
    before = logits(old, ids)
    after = logits(grown_by(old, *key, options), ids)
    known = len(old.tokenizer or ()) if key[0] == "vocab" else before.shape[-1]
    distance = float((before - after[..., : before.shape[-1]])[..., :known].abs().max())
    if growths()[key].keeps == "nothing promised" or options.get("redrawn"):
        assert distance > 0.1
    else:
        assert distance < TOLERANCE
