"""The trace and the losses: against runs made one by one, by hand."""

import math

import pytest
import torch
from torch import Tensor

from brickwork.brick.configuration import Configuration
from brickwork.errors import ConfigurationError
from brickwork.runtime.score import answer_losses, mean_loss
from brickwork.runtime.trace import trace
from tests.served import SOME_FAMILIES, configured, loaded, random_prompts, using
from tests.tiny import FAMILIES

PROMPT, ANSWER = random_prompts([6, 4], seed=5)


def losses_by_hand(family: str, row: Configuration, prompt: list[int], answer: list[int]) -> Tensor:
    (logits,) = configured(family).logits([[*prompt, *answer]], [row])
    chances = logits.double().log_softmax(-1)
    at = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return torch.tensor([-chances[i, token] for i, token in zip(at, answer, strict=True)])


def states_by_hand(family: str, row: Configuration) -> list[Tensor]:
    """The hidden states behind each block, where the answer is told from, run alone.

    Behind the last one they are what the final norm is given.
    """
    model, last = configured(family), list[Tensor]()
    paths = [path for path, s in model.loaded.base.sites.items() if s.address == "final_norm"]
    norm = model.loaded.model.get_submodule(paths[0])
    handle = norm.register_forward_pre_hook(lambda module, given: last.append(given[0]))
    with model.serving([[*PROMPT, *ANSWER]], model.plan([row])) as layout, torch.no_grad():
        states = model.loaded.model(**layout.inputs, output_hidden_states=True).hidden_states
    handle.remove()
    return [h[0, -len(ANSWER) - 1 : -1] for h in (*states[1:-1], *last)]


@pytest.mark.parametrize("family", FAMILIES)
def test_gains_and_moves_are_those_of_runs_without_each_brick(family: str) -> None:
    # Twice the same use: each one is left out alone.
    names = ["lora-1:0.5", "prefix-1", "steering-1:-2", "ia3-1", "prompt-1", "steering-1:-2"]
    row = using(",".join(names))
    found = trace(configured(family), PROMPT, ANSWER, row)
    loss = losses_by_hand(family, row, PROMPT, ANSWER).mean().item()
    assert found.loss == pytest.approx(loss, abs=1e-5)  # float32, another batch
    bare = losses_by_hand(family, using(""), PROMPT, ANSWER).mean().item()
    assert found.base_loss == pytest.approx(bare, abs=1e-5)
    states = states_by_hand(family, row)
    for number, part in enumerate(found.bricks):
        assert (part.name, part.weight) == (row.bricks[number].name, row.bricks[number].weight)
        without = using(",".join(names[:number] + names[number + 1 :]))
        gain = losses_by_hand(family, without, PROMPT, ANSWER).mean().item() - loss
        assert part.gain == pytest.approx(gain, abs=1e-5)
        moves = [
            ((here - there).norm() / there.norm()).item()
            for here, there in zip(states, states_by_hand(family, without), strict=True)
        ]
        assert len(moves) == 2
        assert part.moved == pytest.approx(moves, rel=1e-3, abs=1e-5)
    assert all(part.moved[-1] > 0.001 for part in (found.bricks[0], found.bricks[2]))
    modules = loaded(family).model.modules()
    hooks = [hook for module in modules for hook in module._forward_hooks.values()]
    assert not [hook for hook in hooks if "brickwork" in hook.__module__]


def test_a_trace_without_bricks_is_the_base_twice() -> None:
    found = trace(configured("llama"), PROMPT, ANSWER, using(""))
    assert found.loss == found.base_loss
    assert found.as_document() == {"loss": found.loss, "base_loss": found.loss, "bricks": ()}


def test_a_brick_of_weight_0_gains_and_moves_nothing() -> None:
    (part,) = trace(configured("llama"), PROMPT, ANSWER, using("lora-1:0")).bricks
    assert part.gain == 0
    assert part.moved == (0, 0)


@pytest.mark.parametrize(("prompt", "answer"), [([], ANSWER), (PROMPT, [])])
def test_a_trace_of_nothing_is_refused(prompt: list[int], answer: list[int]) -> None:
    with pytest.raises(ConfigurationError, match=r"at least one token each, not of \d and \d"):
        trace(configured("llama"), prompt, answer, using(""))


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_losses_are_those_of_each_pair_alone(family: str) -> None:
    prompts, answers = random_prompts([6, 1, 3], seed=6), random_prompts([2, 5, 1], seed=7)
    pairs, rows = (
        list(zip(prompts, answers, strict=True)),
        [using("lora-1"), using(""), using("prefix-1")],
    )
    found = answer_losses(configured(family), pairs, rows)
    for losses, row, (prompt, answer) in zip(found, rows, pairs, strict=True):
        expected = losses_by_hand(family, row, prompt, answer)
        torch.testing.assert_close(losses.double(), expected.double(), rtol=1e-5, atol=1e-5)
    mean = mean_loss(configured(family), pairs, rows[0], rows=2)
    every = torch.cat([losses_by_hand(family, rows[0], *pair) for pair in pairs])
    assert math.isclose(mean, every.mean().item(), rel_tol=1e-5)


def test_losses_of_nothing_are_refused() -> None:
    model = configured("llama")
    with pytest.raises(ConfigurationError, match="at least one pair"):
        mean_loss(model, [], using(""))
    for pair in (([], [5]), ([5], [])):
        with pytest.raises(ConfigurationError, match=r"pair 1 has \d tokens of prompt and \d of a"):
            answer_losses(model, [([5], [6]), pair], [using("")] * 2)
