"""Stitching: two models run as one, and the map between them is the least squares'."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import r2_score
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from brickwork.combine.stitching import (
    Point,
    Stitch,
    StitchedFamily,
    fit_stitches,
    parse_points,
    spread_points,
)
from brickwork.errors import ConfigurationError, DataError, MergeError, ModelError
from brickwork.measure.perplexity import instance_losses
from brickwork.model.cost import token_flops
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.stitched import StitchedModel, stitch_models
from brickwork.model.train import Encoded
from tests.stitching import narrow, random_sequences, wide
from tests.tiny import FAMILIES, tiny_model

PAIRS = [("llama", "gpt2"), ("gpt2", "qwen3"), ("gemma2", "llama"), ("gpt_neox", "qwen3")]
HALF = Point(1, 1)


def stitched(front: LoadedModel, back: LoadedModel, point: Point = HALF) -> StitchedModel:
    """Joined by a random map that keeps the size of the stream."""
    wide, width = (m.model.config.get_text_config().hidden_size for m in (back, front))
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(wide, width, generator=generator) / width**0.5
    bias = torch.randn(wide, generator=generator) / 10
    return stitch_models(front, back, blocks=(point.front, point.back), weight=weight, bias=bias)


def rows_of(count: int, tokens: int) -> Tensor:
    return torch.randint(2, 112, (count, tokens), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_stitched_to_itself_by_the_identity_is_itself_to_the_bit(family: str) -> None:
    whole = narrow(family)
    same = stitch_models(whole, whole, blocks=(1, 1), weight=torch.eye(32), bias=torch.zeros(32))
    ids = rows_of(2, 9)
    with torch.inference_mode():
        assert torch.equal(same(ids).logits, whole.model(ids).logits)
    asked: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8}
    assert torch.equal(same.generate(ids, **asked), whole.model.generate(ids, **asked))


@pytest.mark.parametrize(("front", "back"), PAIRS)
def test_generation_with_a_cache_says_what_it_says_without(front: str, back: str) -> None:
    model = stitched(narrow(front), wide(back), Point(1, 2))
    ids = rows_of(2, 7)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # padded on the left
    asked: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(ids, attention_mask=mask, **asked)
    assert torch.equal(cached, model.generate(ids, attention_mask=mask, use_cache=False, **asked))
    alone = ids[:1, 3:]
    expected = model.generate(alone, attention_mask=torch.ones_like(alone), **asked)
    assert cached[0, 7:].tolist()[: expected.shape[1] - 4] == expected[0, 4:].tolist()


def test_beams_that_change_places_take_the_cache_of_both_halves_along() -> None:
    model = stitched(narrow("llama"), wide("gpt2"))
    ids = rows_of(1, 6)
    asked: dict[str, Any] = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    found = model.generate(ids, attention_mask=torch.ones_like(ids), **asked)
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **asked)
    assert torch.equal(found, plain)


def test_a_stitched_model_computes_the_halves_one_after_the_other() -> None:
    front, back = narrow("llama"), wide("llama")
    model, ids = stitched(front, back, Point(1, 2)), rows_of(2, 9)
    with torch.inference_mode():
        states = front.model(ids, output_hidden_states=True).hidden_states[1]
        states = states @ model.stitch.weight.T + model.stitch.bias
        core: Any = back.model.base_model
        positions = torch.arange(9).unsqueeze(0)
        rotary = core.rotary_emb(states, position_ids=positions)
        mask = torch.full((9, 9), -torch.inf).triu(1)[None, None]
        states = core.layers[2](
            states, attention_mask=mask, position_ids=positions, position_embeddings=rotary
        )
        expected = back.model.get_output_embeddings()(core.norm(states))
        found = model(ids, labels=ids)
    torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=1e-5)  # another attention
    loss = cross_entropy(expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert found.loss.item() == pytest.approx(loss.item(), abs=1e-5)


def test_no_weight_is_copied_and_none_is_changed() -> None:
    front, back = narrow("qwen2"), wide("qwen3")
    before = [{k: v.clone() for k, v in m.model.state_dict().items()} for m in (front, back)]
    model = stitched(front, back)
    own = {p.data_ptr() for m in (front, back) for p in m.model.parameters()}
    new = {name for name, p in model.named_parameters() if p.data_ptr() not in own}
    assert new == {"stitch.weight", "stitch.bias"}
    with torch.inference_mode():
        model(rows_of(1, 5))
    for loaded, state in zip((front, back), before, strict=True):
        assert all(torch.equal(loaded.model.state_dict()[k], v) for k, v in state.items())
        assert all(p.requires_grad for p in loaded.model.parameters())
        assert not any(module._forward_hooks for module in loaded.model.modules())


def test_costs_are_those_of_the_parts_that_run() -> None:
    whole, map_size = narrow("llama"), 32 * 32
    same = stitched(whole, whole)
    everything = sum(p.numel() for p in whole.model.parameters())
    assert same.parameter_count() == everything + map_size + 32
    assert same.token_flops() == token_flops(whole.model) + 2 * map_size
    front, back = narrow("gpt2"), wide("gpt2")
    joined = stitched(front, back)
    blocks = [sum(p.numel() for p in m.model.get_submodule("transformer.h.1").parameters())
              for m in (front, back)]  # fmt: skip
    tables, norm, head = (112 + 64) * 32, 2 * 48, 112 * 48
    expected = tables + blocks[0] + (32 + 1) * 48 + 2 * blocks[1] + norm + head
    assert joined.parameter_count() == expected


def hidden(model: LoadedModel, sequences: list[Encoded], place: int) -> NDArray[np.float64]:
    """The stream before a block as transformers tells it, one sequence at a time."""
    with torch.inference_mode():
        states = [
            model.model(torch.tensor([s.ids]), output_hidden_states=True).hidden_states[place][0]
            for s in sequences
        ]
    return torch.cat(states).double().numpy()


@pytest.mark.parametrize(("front", "back"), PAIRS)
def test_the_map_is_the_least_squares_of_numpy(front: str, back: str) -> None:
    first, last = narrow(front), wide(back)
    sequences, held_out = random_sequences(40), random_sequences(15, seed=1)
    points = [Point(1, 2), Point(1, 0)]
    found = fit_stitches(first, last, sequences, points, held_out=held_out, ridge=0.0)
    for stitch, place in zip(found, (2, 0), strict=True):
        x, y = hidden(first, sequences, 1), hidden(last, sequences, place)
        best = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
        # The models compute in float32, here all rows of a batch at once.
        torch.testing.assert_close(
            stitch.weight.numpy(), best[:-1].T.astype("f4"), atol=2e-4, rtol=2e-4
        )
        torch.testing.assert_close(stitch.bias.numpy(), best[-1].astype("f4"), atol=2e-4, rtol=2e-4)
        x, y = hidden(first, held_out, 1), hidden(last, held_out, place)
        said = x @ best[:-1] + best[-1]
        whole = r2_score(y, said, multioutput="variance_weighted")
        alone = r2_score(y, said, multioutput="raw_values")
        assert stitch.explained == pytest.approx(whole, abs=1e-4)
        # Of an even number of channels torch takes the lower one of the middle.
        middle = np.sort(alone)[(len(alone) - 1) // 2]
        assert stitch.explained_median == pytest.approx(middle, abs=1e-4)


def test_a_model_fitted_to_itself_gets_the_identity() -> None:
    whole = narrow("qwen3")
    stitches = fit_stitches(
        whole, whole, random_sequences(60), [HALF], held_out=random_sequences(9, 1)
    )
    ids = rows_of(2, 9)
    with torch.inference_mode():
        found = StitchedFamily(whole, whole, stitches).model(HALF)(ids).logits
        # The ridge of 1e-6 pulls the map towards 0 by about as much; two blocks pass it on.
        torch.testing.assert_close(found, whole.model(ids).logits, atol=1e-4, rtol=1e-4)
    assert stitches[0].explained == pytest.approx(1.0, abs=1e-8)


def test_the_ends_are_the_two_models() -> None:
    front, back = narrow("llama"), wide("gpt2")
    family = StitchedFamily(front, back, ())
    assert family.model(Point(0, 0)) is back.model
    assert family.model(Point(2, 3)) is front.model


def test_many_points_in_one_pass_are_each_point_alone() -> None:
    front, back = narrow("llama"), wide("qwen3")
    points, sequences = [Point(1, 1), Point(2, 1), Point(1, 2)], random_sequences(30)
    together = fit_stitches(front, back, sequences, points)
    for point, stitch in zip(points, together, strict=True):
        (alone,) = fit_stitches(front, back, sequences, [point])
        assert torch.equal(alone.weight, stitch.weight)
        assert torch.equal(alone.bias, stitch.bias)
        assert stitch.explained is None


def test_a_channel_that_is_always_large_costs_the_others_no_digits() -> None:
    front, back = narrow("llama"), narrow("llama", seed=1)
    sequences = random_sequences(40)
    (expected,) = fit_stitches(front, back, sequences, [HALF], ridge=0.0)
    bias: Any = torch.nn.Parameter(torch.zeros(32))
    shifted = narrow("llama")
    down: Any = shifted.model.get_submodule("model.layers.0.mlp.down_proj")
    with torch.no_grad():
        bias[5] = 4096.0  # of a spread of about 1; float32 keeps 4 digits of it
    down.bias = bias
    (found,) = fit_stitches(shifted, back, sequences, [HALF], ridge=0.0)
    torch.testing.assert_close(found.weight, expected.weight, atol=1e-3, rtol=1e-3)


def test_losses_of_a_stitched_model_in_half_precision() -> None:
    front, back = narrow("llama"), wide("gpt2")
    sequences = random_sequences(12)
    exact = instance_losses(stitched(front, back), sequences).response
    half = [wrap_model(m.model.bfloat16(), m.tokenizer, m.name) for m in (front, back)]
    rough = instance_losses(stitched(*half), sequences).response
    # bfloat16 keeps 8 bits; a response has up to 12 tokens of about 5 nats.
    torch.testing.assert_close(rough, exact, atol=1.0, rtol=0.03)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 30))
def test_points_are_between_the_models_and_as_many_as_asked_for(
    front: int, back: int, count: int
) -> None:
    every, some = spread_points(front, back), spread_points(front, back, count)
    assert some == sorted(set(some))
    assert set(some) <= set(every)
    assert len(some) == min(count, len(every))
    for point in every:
        assert 1 <= point.front <= max(front - 1, 1)
        assert min(1, back - 1) <= point.back <= max(back - 1, 0)


def test_refuses_what_cannot_be_joined() -> None:
    front, back = narrow("llama"), wide("gpt2")
    other: Any = narrow("llama")
    other.tokenizer.add_tokens(["zebra"])
    data = random_sequences(30)
    with pytest.raises(MergeError, match=r"(?s)narrow llama cannot be stitched.*tokenizers differ"):
        fit_stitches(other, back, data, [HALF])
    bare = wrap_model(tiny_model("llama"))
    with pytest.raises(MergeError, match="tokenizers differ"):
        fit_stitches(front, bare, data, [HALF])
    for points, words in (
        ([Point(0, 1)], "0:1 cannot be"), ([Point(1, 3)], "block 0 to 2 of wide gpt2"),
        ([Point(3, 1)], "1 to 2 blocks of narrow llama"), ([], "no point"), ([HALF, HALF], "twice"),
    ):  # fmt: skip
        with pytest.raises(MergeError, match=words):
            fit_stitches(front, back, data, points)
    with pytest.raises(MergeError, match=r"32 channels was to be fitted on \d+ tokens"):
        fit_stitches(front, back, data[:1], [HALF])
    with pytest.raises(DataError, match="fitted on no sequence"):
        fit_stitches(front, back, [], [HALF])
    family = StitchedFamily(front, back, (Stitch(HALF, torch.eye(32), torch.zeros(32)),))
    with pytest.raises(MergeError, match=r"model at 1:2 was asked for.*at 1:1"):
        family.model(Point(1, 2))
    with pytest.raises(ConfigurationError, match=r"the part '2-3', which is no point"):
        parse_points("1:2,2-3")


def test_refuses_a_stream_that_is_not_finite() -> None:
    front, back = narrow("llama"), narrow("gpt2")
    with torch.no_grad():
        front.model.get_submodule("model.layers.0.mlp.down_proj").weight[0, 0] = torch.inf
    with pytest.raises(MergeError, match=r"place 1 to place 1 has no solution.*NaN or infinity"):
        fit_stitches(front, back, random_sequences(30), [HALF])


def test_refuses_a_cache_of_one_half_and_a_checkpoint() -> None:
    front, back = narrow("llama"), wide("gpt2")
    model, ids = stitched(front, back), rows_of(1, 4)
    cache = DynamicCache(config=front.model.config)
    with torch.inference_mode():
        front.model(ids, past_key_values=cache, use_cache=True)
        with pytest.raises(ConfigurationError, match="DynamicCache that holds 4 positions"):
            model(ids, past_key_values=cache, use_cache=True)
    with pytest.raises(ModelError, match="cannot be folded"):
        model.save_pretrained("anywhere")
