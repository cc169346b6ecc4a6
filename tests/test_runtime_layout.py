"""What a batch refuses before it runs, and where its parts stand."""

from collections.abc import Sequence

import pytest
import torch

from brickwork.errors import ConfigurationError
from tests.served import bricks_of, configured, random_prompts, using


def tokens_of(family: str, brick: str) -> int:
    """How many positions a prefix or soft prompt takes."""
    tensor = next(iter(bricks_of(family)[brick].tensors.values()))
    return tensor.shape[-2]


@pytest.mark.parametrize(
    ("prompts", "rows", "message"),
    [
        ([], 0, "the batch has no rows; give at least one prompt"),
        ([[5]], 2, "1 prompts, but 2 configurations; give one for each"),
        ([[5], [5]], 1, "2 prompts, but 1 configurations"),
        ([[5], []], 2, "prompt 1 has no tokens; give every row at least one"),
        ([[5, 112]], 1, "prompt 0 has token ids from 5 to 112; the model knows 0 to 111"),
        ([[-1]], 1, "prompt 0 has token ids from -1 to -1"),
        ([[5] * 65], 1, "row 0 takes 65 positions .*; the model has learned 64. Shorten"),
    ],
)
def test_a_batch_that_cannot_run_is_refused(
    prompts: Sequence[list[int]], rows: int, message: str
) -> None:
    model, configurations = configured("gpt2"), [using("")] * rows
    for run in (model.logits, model.generate):
        with pytest.raises(ConfigurationError, match=message):
            run(prompts, configurations)
    assert not any("forward" in vars(module) for module in model.loaded.model.modules())


@pytest.mark.parametrize("brick", ["prefix-1", "prompt-1"])
def test_what_stands_before_a_prompt_takes_learned_positions(brick: str) -> None:
    model, room = configured("gpt2"), 64 - tokens_of("gpt2", brick)
    fits, longer = random_prompts([room, room + 1])
    assert model.logits([fits], [using(brick)])[0].shape == (room, 112)
    with pytest.raises(ConfigurationError, match="takes 65 positions"):
        model.logits([[5], longer], [using(brick), using(brick)])
    model.logits([longer], [using(f"{brick}:0")])


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_positions_count_what_a_row_has_and_tokens_end_it(family: str) -> None:
    model = configured(family)
    names = ("", "prefix-1,prefix-2", "prompt-1", "prefix-2,prompt-2")
    prompts, rows = random_prompts([6, 2, 3, 4]), [using(name) for name in names]
    with model.serving(prompts, model.plan(rows)) as layout:
        for row, (prompt, name) in enumerate(zip(prompts, names, strict=True)):
            before = sum(tokens_of(family, brick) for brick in name.split(",") if brick)
            assert layout.mask[row].sum() == before + len(prompt)
            expected = torch.arange(before, before + len(prompt))
            assert torch.equal(layout.positions[row, -len(prompt) :], expected)
            embedded = model.loaded.model.get_input_embeddings()(torch.tensor(prompt))
            assert torch.equal(layout.inputs["inputs_embeds"][row, -len(prompt) :], embedded)
    assert layout.lengths == [6, 2, 3, 4]


def test_a_prefix_has_no_gap_behind_it_where_a_window_would_count_it() -> None:
    prompts, rows = random_prompts([3, 9]), [using("prefix-1"), using("prefix-2")]
    for family, gap in (("llama", True), ("mistral", False)):
        model = configured(family)
        with model.serving(prompts, model.plan(rows)) as layout:
            held = layout.mask[0].nonzero()[:, 0]
            assert (len(held) < held[-1] - held[0] + 1) == gap
