"""row_logits: the same as configurations that name the bricks."""

import torch

from brickwork.brick.configuration import Configuration, parse_uses
from brickwork.runtime.brick_rows import row_logits
from tests.served import bricks_of, configured, loaded, random_prompts

PROMPTS = random_prompts([5, 7, 3], seed=1)


def test_rows_have_their_own_bricks_and_the_base_where_there_are_none() -> None:
    bricks = bricks_of("llama")
    rows = [(bricks["lora-1"], bricks["prefix-1"]), (), (bricks["lora-2"],)]
    found = row_logits(loaded("llama"))(PROMPTS, rows, [1, 1, 1])
    names = ["lora-1,prefix-1", "", "lora-2"]
    expected = configured("llama").logits(
        PROMPTS, [Configuration(bricks=parse_uses(uses)) for uses in names]
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
