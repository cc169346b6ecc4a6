"""Strategies over a stream: what each changes, what stays to the bit, and what is counted."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from brickwork.errors import ConfigurationError, DataError, GrowthError, UnknownNameError
from brickwork.grow.answering import Answers, Examples, model_answers
from brickwork.grow.strategies import find_strategy, strategies
from brickwork.grow.stream import run_stream
from brickwork.grow.stream_measures import backward_transfer, changes, gains
from brickwork.grow.stream_results import StepCost, StreamResult
from brickwork.grow.stream_summary import Run, Snapshot, summarise
from brickwork.measure.perplexity import response_losses
from brickwork.model.cost import token_flops
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.train import Encoded
from tests.stream import background, context, sequences, task, tasks
from tests.tiny import tiny_model, tiny_tokenizer

OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2}, "blocks": {"blocks": 1}, "o-lora": {"rank": 2},
    "progressive": {"tokens": 2},
}  # fmt: skip
every_strategy = pytest.mark.parametrize("strategy", strategies())


def loaded(family: str = "llama") -> LoadedModel:
    return wrap_model(tiny_model(family), tiny_tokenizer(), f"tiny-{family}")


def run(base: LoadedModel, strategy: str, **changed: Any) -> StreamResult:
    options = OPTIONS.get(strategy, {}) | changed
    return run_stream(
        context(base), tasks(), strategy=strategy, options=options, background=background()
    )


def bits(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("family", "strategy"),
    [
        *(("llama", name) for name in strategies()),
        *((family, name) for family in ("gpt2", "mixtral") for name in ("lora", "blocks")),
    ],
)
def test_a_stream_leaves_the_base_as_it_was_to_the_bit(family: str, strategy: str) -> None:
    base = loaded(family)
    base.model.lm_head.weight.requires_grad_(False)  # whoever froze something finds it frozen
    before, asking = bits(base.model), [p.requires_grad for p in base.model.parameters()]
    run(base, strategy)
    after = base.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [p.requires_grad for p in base.model.parameters()] == asking
    assert all(p.grad is None for p in base.model.parameters())


@every_strategy
def test_before_the_stream_every_strategy_is_the_base(strategy: str) -> None:
    base = loaded()
    first = run(base, strategy)
    examples = [*(t.examples for t in tasks()), *background().values()]
    expected = [model_answers(base.model, one.sequences).loss for one in examples]
    # Other batches, and new blocks that add zeros, round otherwise in float32.
    assert [*first.losses[0], *first.base_losses[0]] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("strategy", ["full", "lora", "blocks", "o-lora"])
def test_training_learns_the_task_at_hand(strategy: str) -> None:
    found = run(loaded(), strategy)
    assert found.losses[1][0] < found.losses[0][0]
    assert found.losses[2][1] < found.losses[1][1]


@every_strategy
def test_equal_seeds_give_equal_numbers(strategy: str) -> None:
    one, other = run(loaded(), strategy), run(loaded(), strategy)
    assert (one.losses, one.base_losses, one.served) == (
        other.losses, other.base_losses, other.served,
    )  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_routed_bricks_forget_nothing_where_the_router_abstains(family: str) -> None:
    found = run(loaded(family), "bricks")
    assert backward_transfer(found.losses) == 0.0  # a frozen brick, to the bit
    coding, ethics = changes(found.base_losses)
    assert ethics == 0.0
    assert coding != 0.0  # "sums of code" went to the brick of sums
    assert (found.untouched, found.moved) == (4, 0)
    assert found.served["Coding"].model_dump() == {"prompts": 3, "own": 0, "other": 1, "none": 2}
    assert found.served["verbs"].model_dump() == {"prompts": 6, "own": 6, "other": 0, "none": 0}


def test_a_router_without_mistakes_is_the_oracle_on_the_tasks() -> None:
    base = loaded()
    assert run(base, "bricks").losses == run(base, "oracle").losses
    assert not any(changes(run(base, "oracle").base_losses))


def test_replay_keeps_what_a_plain_run_forgets() -> None:
    base = loaded()
    own = Examples(tuple("abcdef"), sequences(21, 6))  # what the memory holds of the base
    plain, replayed = (
        run_stream(
            context(base), tasks(), strategy="full", options=options, background={"old": own}
        )
        for options in ({}, {"replay": 0.5, "instances": 12})
    )
    assert replayed.base_losses[-1][0] < plain.base_losses[-1][0]
    forgotten = [backward_transfer(one.losses) for one in (plain, replayed)]
    assert forgotten[1] < forgotten[0]  # type: ignore[operator]  # there are two tasks


def test_what_is_added_is_counted() -> None:
    base = loaded()
    layer = sum(p.numel() for p in base.model.model.layers[0].parameters())
    blocks = run(base, "blocks").costs[-1]
    assert blocks.parameters == layer
    linear = [p for p in base.model.model.layers[0].parameters() if p.dim() == 2]
    assert blocks.flops == 2 * sum(p.numel() for p in linear)
    sizes = [s.sizes for s in base.base.of_kind("linear") if s.layer is not None]
    assert run(base, "lora").costs[-1].parameters == sum(2 * (s["in"] + s["out"]) for s in sizes)
    full = run(base, "full").costs[-1]
    assert (full.parameters, full.flops) == (0, 0)
    bricks = run(base, "bricks").costs
    assert bricks[0].parameters < bricks[1].parameters
    assert 0 < bricks[1].flops < token_flops(base.model)


def test_answers_are_those_of_a_loop_over_tokens() -> None:
    base, asked = loaded("gpt2"), sequences(3, 5)
    said = greedy(base, asked[0])
    mixed = (*asked, said)
    found = model_answers(base.model, mixed)
    losses = response_losses(base.model, mixed, [str(n) for n in range(len(mixed))])
    mine = (found.nats / found.tokens).tolist()
    # float32 logits of other batches
    assert mine == pytest.approx([losses[str(n)] for n in range(len(mixed))], abs=1e-5)
    assert found.right.tolist() == [False] * 5 + [True]
    assert found.accuracy == pytest.approx(1 / 6)


def greedy(base: LoadedModel, prompt: Encoded) -> Encoded:
    """The prompt with what the model itself would say."""
    ids = list(prompt.ids[: prompt.response_start])
    for _ in range(3):
        ids.append(int(base.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return Encoded(ids, prompt.response_start)


def test_a_summary_counts_what_moved_among_what_the_base_answered_alone() -> None:
    def answers(nats: list[float], served: tuple[str | None, ...] | None) -> Answers:
        right = torch.tensor([True, False, False])
        return Answers(torch.tensor(nats).double(), torch.tensor([1, 2, 1]), right, served)

    none = (None,) * 3
    first = Snapshot({"a": answers([4, 4, 4], none)}, {"Math": answers([1, 2, 3], none)})
    last = Snapshot(
        {"a": answers([1, 1, 2], ("a", "a", None))},
        {"Math": answers([1, 2.5, 9], (None, None, "a"))},
    )
    run = Run("bricks", "bricks", {}, [StepCost(parameters=1, flops=1, seconds=1)], 0.0, seed=0)
    found = summarise([first, last], run)
    assert found.losses == [[3.0], [1.0]]
    assert gains(found.losses) == [2.0]
    assert (found.untouched, found.moved) == (2, 1)
    assert found.base["Math"].change.value == 1.625  # 6.5 nats more over 4 tokens
    assert found.overall == found.base["Math"]
    assert found.served["a"].model_dump() == {"prompts": 3, "own": 2, "other": 0, "none": 1}
    assert found.accuracies == [[pytest.approx(1 / 3)]] * 2


@pytest.mark.parametrize(
    ("changes", "options", "error", "message"),
    [
        ({"strategy": "brick"}, {}, UnknownNameError, "did you mean 'bricks'"),
        ({"strategy": "full"}, {"replay": 1.5}, ConfigurationError, "replay: .*not 1.5"),
        ({"strategy": "oracle"}, {"rank": 2}, ConfigurationError, "it has these: none"),
        ({"strategy": "full", "tasks": []}, {}, GrowthError, "a stream of 0 tasks"),
        ({"strategy": "full", "tasks": [task("a", 1)] * 2}, {}, GrowthError, "'a' in it twice"),
    ],
)
def test_what_cannot_be_run_is_refused(
    changes: dict[str, Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {"tasks": tasks(), **changes}
    with pytest.raises(error, match=message):
        run_stream(context(loaded()), given["tasks"], strategy=given["strategy"], options=options)


def test_a_strategy_names_what_it_was_not_given() -> None:
    bare = context(loaded(), router=None, logits=None)
    with pytest.raises(GrowthError, match="was given no router, no logits"):
        run_stream(bare, tasks(), strategy="bricks")


def test_a_router_that_names_a_task_to_come_is_refused() -> None:
    early = context(loaded(), router=lambda learned: lambda prompts: ["verbs"] * len(prompts))
    with pytest.raises(GrowthError, match="'verbs', but the tasks learned so far are sums"):
        run_stream(early, tasks(), strategy="bricks")


@pytest.mark.parametrize(
    ("prompts", "sequence", "message"),
    [
        ((), (), "0 prompts with 0 sequences"),
        (("a", "b"), (Encoded([1, 2], 1),), "2 prompts with 1 sequences"),
        (("a",), (Encoded([1, 2], 2),), "2 tokens with a response from token 2"),
        (("a",), (Encoded([1, 2], 0),), "response from token 0"),
    ],
)
def test_examples_that_cannot_be_measured_are_refused(
    prompts: tuple[str, ...], sequence: tuple[Encoded, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Examples(prompts, sequence)


def test_rows_of_the_table_can_be_loaded() -> None:
    for name, row in strategies().items():
        assert find_strategy(name) is row
        assert row.parse({}).model_dump() is not None
        assert row.source
