"""Causal tracing: a slow loop that restores one state at a time, laws, and the world model."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from brickwork.errors import ConfigurationError, EditError
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.parts import layers_of
from brickwork.update.recall import Recall, answer_logs, knows, own_answer, recall_fact
from brickwork.update.trace_results import KINDS, Kind, Tracing
from brickwork.update.tracing import TraceRecipe, said_by, subject_deviation, trace, window_of
from brickwork.update.words import Prompted, encode_fact
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer
from tests.world import world

IDS, START, STOP = (5, 9, 30, 41, 12, 77, 20), 2, 4


def known(model: PreTrainedModel, tokens: int = 2) -> Recall:
    """A prompt with what the model itself says to it."""
    ids = list(IDS)
    with torch.no_grad():
        for _ in range(tokens):
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
    prompt = Prompted(IDS, START, STOP)
    return Recall("a", "the text", "subject", prompt, tuple(ids[len(IDS) :]))


def loaded_of(model: PreTrainedModel) -> LoadedModel:
    return wrap_model(model, tiny_tokenizer(), "tiny")


@torch.no_grad()
def answer_probability(model: PreTrainedModel, recall: Recall) -> float:
    logits = model(input_ids=torch.tensor([recall.ids]), use_cache=False).logits[0].double()
    logs = logits.log_softmax(-1)[len(recall.prompt.ids) - 1 :]
    return float(logs[range(len(recall.answer)), list(recall.answer)].sum().exp())


def changed(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Any:
    """A hook on the module's output, as ``tokens hidden`` of the only row."""

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return change(output.reshape(-1, output.shape[-1]).clone()).view_as(output)

    return module.register_forward_hook(hook)


def slow_effect(
    model: PreTrainedModel, recall: Recall, recipe: TraceRecipe, cell: tuple[Kind, int, int]
) -> float:
    """One state at a time, one sample at a time, the whole model each time."""
    kind, layer, position = cell
    width = 1 if kind == "residual" else recipe.window or 0
    modules = [said_by(model, kind, n) for n in window_of(layer, width, layers_of(model))]
    clean: list[Tensor] = []
    hooks = [changed(m, lambda said: (clean.append(said.clone()), said)[1]) for m in modules]
    answer_probability(model, recall)
    for hook in hooks:
        hook.remove()
    sigma = recipe.noise * subject_deviation(model, [recall])
    size = model.get_input_embeddings().weight.shape[1]
    generator = torch.Generator().manual_seed(recipe.seed)
    noise = sigma * torch.randn(recipe.samples, STOP - START, size, generator=generator)
    rises = []
    for sample in noise:
        added = torch.cat([torch.zeros(START, size), sample])

        def disturb(said: Tensor, added: Tensor = added) -> Tensor:
            said[: len(added)] += added
            return said

        disturbing = changed(model.get_input_embeddings(), disturb)
        low = answer_probability(model, recall)
        hooks = [changed(m, _restoring(c, position)) for m, c in zip(modules, clean, strict=True)]
        rises.append(answer_probability(model, recall) - low)
        for hook in [disturbing, *hooks]:
            hook.remove()
    return sum(rises) / len(rises)


def _restoring(clean: Tensor, position: int) -> Callable[[Tensor], Tensor]:
    def restore(said: Tensor) -> Tensor:
        said[position] = clean[position]
        return said

    return restore


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_loop_that_restores_one_state_at_a_time(family: str) -> None:
    model = tiny_model(family)
    recall = known(model)
    # A budget of three rows, so that a layer needs several passes.
    recipe = TraceRecipe(samples=2, window=2, tokens_per_batch=3 * len(recall.ids))
    fact = trace(loaded_of(model), [recall], recipe).facts[0]
    assert fact.clean == pytest.approx(answer_probability(model, recall), rel=1e-4)
    assert [token.position for token in fact.tokens] == list(range(START, len(IDS)))
    for kind in KINDS:
        for token, layer in ((0, 0), (1, 1), (4, 0), (4, 1)):
            expected = slow_effect(model, recall, recipe, (kind, layer, START + token))
            # Probabilities of float32 passes in batches of other sizes.
            assert fact.effects[kind][token][layer] == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("family", ["llama", "opt", "mixtral"])
def test_leaves_the_model_as_it_was(family: str) -> None:
    model = tiny_model(family)
    before = copy.deepcopy(model)
    recall = known(model)
    trace(loaded_of(model), [recall], TraceRecipe(samples=2))
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True)
    )
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    ids = torch.tensor([IDS])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before(input_ids=ids).logits)
    assert not any("forward" in vars(m) or m._forward_hooks for m in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_what_is_before_the_subject_and_after_the_answer_needs_no_tracing() -> None:
    model = tiny_model("llama")
    recall = known(model)
    fact = trace(loaded_of(model), [recall], TraceRecipe(samples=2, kinds=("residual",))).facts[0]
    # Restoring what the last block hands on at the last token leaves nothing of the noise there;
    # only the second token of the answer still reads disturbed states.
    one = replace(recall, answer=recall.answer[:1])
    whole = trace(loaded_of(model), [one], TraceRecipe(samples=2, kinds=("residual",))).facts[0]
    assert whole.effects["residual"][-1][-1] == pytest.approx(
        whole.clean - whole.corrupted, abs=1e-6
    )
    assert fact.effects["residual"][-1][-1] < fact.clean - fact.corrupted + 1e-6


def test_equal_seeds_give_equal_numbers_and_others_do_not() -> None:
    model = tiny_model("llama")
    recall = known(model)

    def traced(seed: int) -> Tracing:
        return trace(loaded_of(model), [recall], TraceRecipe(samples=2, seed=seed))

    assert traced(1) == traced(1)
    assert traced(1).facts != traced(2).facts


def test_facts_that_the_model_gets_wrong_are_listed_and_the_others_traced() -> None:
    model = tiny_model("llama")
    right = known(model, tokens=1)
    wrong = replace(right, id="wrong", answer=((right.answer[0] + 1) % 100,))
    tracing = trace(loaded_of(model), [wrong, right], TraceRecipe(samples=1))
    assert [fact.id for fact in tracing.facts] == ["a"]
    assert list(tracing.skipped) == ["wrong"]
    assert tracing.skipped["wrong"].startswith("the model does not answer")
    with pytest.raises(EditError, match="it gives none of 1; of 'the text' it was"):
        trace(loaded_of(model), [wrong], TraceRecipe(samples=1))


@pytest.mark.parametrize("recipe", [TraceRecipe(samples=0), TraceRecipe(window=0)])
def test_no_samples_and_no_window_are_refused(recipe: TraceRecipe) -> None:
    model = tiny_model("llama")
    with pytest.raises(ConfigurationError, match="of 0; take at least 1"):
        trace(loaded_of(model), [known(model)], recipe)


def test_windows_lie_about_their_layer_and_scale_with_the_depth() -> None:
    assert [list(window_of(n, 3, 4)) for n in range(4)] == [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]]
    assert list(window_of(24, 10, 48)) == list(range(19, 29))
    assert all(n in window_of(n, width, 6) for n in range(6) for width in (1, 2, 3, 10))


def test_averages_are_means_over_facts_within_their_intervals() -> None:
    loaded = world().loaded
    recalls = [recall_fact(loaded, encode_fact(loaded, f), "true") for f in world().edits(4)]
    tracing = trace(loaded, recalls, TraceRecipe(("mlp",), samples=2))
    for row in tracing.averages:
        found = [fact.at("mlp", row.place, row.layer) for fact in tracing.facts]
        values = [value for value in found if value is not None]
        assert row.facts == len(values)
        assert row.effect.value == pytest.approx(sum(values) / len(values), abs=1e-9)
        # A percentile of means of equal numbers is that number up to rounding.
        assert row.effect.low - 1e-9 <= row.effect.value <= row.effect.high + 1e-9
        assert row.address == f"layers.{row.layer}.mlp"


def test_the_world_model_recalls_at_the_last_token() -> None:
    """As the notes measured on such a model; its edits work there, too."""
    loaded = world().loaded
    recalls = [recall_fact(loaded, encode_fact(loaded, f), "true") for f in world().edits(8)]
    tracing = trace(loaded, recalls, TraceRecipe(samples=4))
    last, subject = (tracing.best("mlp", place) for place in ("last", "subject_last"))
    assert last is not None
    assert subject is not None
    # Measured: 0.49 at the last token, at the subject's 0.00.
    assert last.effect.value > 0.3
    assert subject.effect.value < 0.1
    assert tracing.best("mlp") == last


def test_own_answers_are_what_the_model_says() -> None:
    loaded = world().loaded
    for fact in world().edits(3):
        encoded = encode_fact(loaded, fact)
        assert own_answer(loaded, encoded.prompt.ids)[:1] == encoded.true
        assert knows(loaded.model, recall_fact(loaded, encoded, "own"))


def test_logs_are_those_of_the_whole_model() -> None:
    model = tiny_model("gemma2")
    recall = known(model, tokens=3)
    logs = answer_logs(model, recall, 2)
    with torch.no_grad():
        whole = model(input_ids=torch.tensor([recall.ids]), use_cache=False).logits[0]
    expected = whole.log_softmax(-1)[list(recall.spots)]
    assert torch.allclose(logs[1], expected, atol=1e-5)  # float32, another batch
