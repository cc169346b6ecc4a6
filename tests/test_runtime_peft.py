"""A configured model against PEFT, against hooks made by hand, and against merged weights."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from brickwork.brick.configuration import Configuration, parse_uses
from brickwork.brick.effects import Add
from brickwork.brick.folder import read_peft
from brickwork.brick.forms import effects_of
from brickwork.runtime.configured import ConfiguredModel
from tests.bricks import random_brick
from tests.served import (
    bricks_of,
    configured,
    loaded,
    merged_by_hand,
    random_prompts,
    using,
)
from tests.test_brick_peft import PLAIN_KINDS, SPECIAL_KINDS, load_by_peft, save_adapter
from tests.tiny import FAMILIES

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing",  # PEFT calls it by its old name
    "ignore:Position ids are not supported",  # its generate gives them to its forward
    "ignore:fan_in_fan_out is set to False",  # it corrects the orientation of GPT-2 by itself
)
every_family = pytest.mark.parametrize("family", FAMILIES)
KINDS = {**PLAIN_KINDS, "rslora": SPECIAL_KINDS["rslora"]}
# The first takes two windows of 4 tokens; the others pad it and are padded.
PROMPTS = random_prompts([6, 9, 2], seed=4)


def close(found: Tensor, expected: Tensor) -> None:
    # float32: PEFT, a merged weight and we add the same numbers in other orders, and how they are
    # added depends on the processor: on one, a logit of 672 differs by 1.08e-5, of logits up to 3.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@every_family
def test_a_row_equals_pefts_own_forward_and_generate(
    family: str, kind: str, tmp_path: Path
) -> None:
    save_adapter(deepcopy(loaded(family).model), KINDS[kind](loaded(family).base), tmp_path)
    by_peft, model = load_by_peft(family, tmp_path), configured(family)
    model.add(read_peft(tmp_path, loaded(family).base, "imported"))
    rows = [using(bricks, max_new_tokens=5) for bricks in ("imported", "prefix-1,lora-1", "")]
    prompt = torch.tensor(PROMPTS[:1])
    with torch.no_grad():
        expected = by_peft(input_ids=prompt).logits[0, -len(PROMPTS[0]) :]
    close(model.logits(PROMPTS[:1], rows[:1])[0], expected)
    close(model.logits(PROMPTS, rows)[0], expected)
    said = by_peft.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5, do_sample=False
    )
    answer = said[0, len(PROMPTS[0]) :].tolist()
    end = answer.index(1) if 1 in answer else len(answer)
    assert model.generate(PROMPTS, rows)[0].tokens == tuple(answer[:end])


def by_hand(model: PreTrainedModel, prompt: Sequence[int]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.tensor([prompt])).logits[0]
    return found


@pytest.mark.parametrize("form", ["bias", "steering"])
@every_family
def test_a_shift_equals_a_hook_made_by_hand(family: str, form: str) -> None:
    model, handles = deepcopy(loaded(family).model), []
    for path, slots in bricks_of(family)[f"{form}-1"].by_site.items():
        (vector,) = slots.values()

        def add(_module: nn.Module, _given: Any, output: Any, *, vector: Tensor = vector) -> Any:
            if isinstance(output, tuple):
                return (output[0] - 1.5 * vector, *output[1:])
            return output - 1.5 * vector

        handles.append(model.get_submodule(path).register_forward_hook(add))
    assert handles
    rows = [using(f"{form}-1:-1.5"), using("prefix-2")]
    found = configured(family).logits(PROMPTS[:2], rows)[0]
    close(found, by_hand(model, PROMPTS[0]))


@every_family
def test_weighted_loras_equal_weights_merged_by_hand_in_float64(family: str) -> None:
    uses = parse_uses("lora-1:0.5,lora-2:-1.5,lora-1")
    merged = merged_by_hand(family, uses)
    rows = [Configuration(bricks=uses), using("lora-2")]
    found = configured(family).logits(PROMPTS[:2], rows)[0]
    close(found, by_hand(merged, PROMPTS[0]))


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # qwen2's is tied to the embedding
def test_a_lora_on_the_unembedding_adds_to_the_logits_alone(family: str) -> None:
    base, model = loaded(family), ConfiguredModel(loaded(family))
    draw = torch.Generator().manual_seed(1)
    brick = random_brick("lora", base.base, draw, sites=["lm_head"], name="words")
    model.add(brick)
    (effect,) = effects_of(brick)
    assert isinstance(effect, Add)
    with torch.no_grad():
        output = base.model(torch.tensor(PROMPTS[:1]), output_hidden_states=True)
    term = output.hidden_states[-1][0] @ effect.A.T @ effect.B.T * effect.scaling
    rows = [using("words:0.5"), using(""), using("words")]
    close(model.logits(PROMPTS, rows)[0], output.logits[0] + 0.5 * term)
