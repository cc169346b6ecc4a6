"""applied: the model itself runs every batch under one configuration, with gradients."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from brickwork.brick.configuration import Configuration, parse_uses
from brickwork.brick.folder import read_peft
from brickwork.errors import ConfigurationError, MisfitError
from brickwork.model.load import wrap_model
from brickwork.runtime.configured import ConfiguredModel
from brickwork.runtime.layout import lay_out
from tests.served import (
    SOME_FAMILIES,
    bricks_of,
    configured,
    loaded,
    merged_by_hand,
    random_prompts,
    uses_for,
    using,
)
from tests.test_brick_peft import PLAIN_KINDS, load_by_peft, save_adapter
from tests.tiny import FAMILIES, tiny_model

every_family = pytest.mark.parametrize("family", FAMILIES)
CHANGES = (
    "lora-1,lora-2:-0.5",
    "ia3-1:0.5,bias-2,steering-1",
    "mask-1,lora-1",
    "skip-1:3,patch-1,steering-2",
    "codebook-1,memory-2:0.5,patch-2:-1",
)
PROMPTS = random_prompts([6, 9, 2], seed=4)


def close(found: Tensor, expected: Tensor) -> None:
    # float32: a batch of another shape, or a merged weight, adds the same numbers in another
    # order, on logits of about 3.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


def padded(model: PreTrainedModel, prompts: list[list[int]]) -> list[Tensor]:
    """The logits of each row of a batch, padded from the left."""
    layout = lay_out(model, prompts, [[]] * len(prompts))
    output = model(**layout.inputs, attention_mask=layout.mask, position_ids=layout.positions)
    return [row[-len(prompt) :] for row, prompt in zip(output.logits, prompts, strict=True)]


@pytest.mark.parametrize("bricks", CHANGES)
@every_family
def test_every_batch_is_as_if_each_of_its_rows_were_so_configured(family: str, bricks: str) -> None:
    model, row = configured(family), using(uses_for(family, bricks))
    expected, bare = model.logits(PROMPTS, [row] * 3), model.logits(PROMPTS, [Configuration()] * 3)
    assert all((e - b).abs().max() > 1e-3 for e, b in zip(expected, bare, strict=True))
    with model.applied(row), torch.no_grad():
        for numbers in ([0, 1, 2], [1], [2, 0]):
            prompts = [PROMPTS[number] for number in numbers]
            for number, found in zip(numbers, padded(model.loaded.model, prompts), strict=True):
                close(found, expected[number])
    with torch.no_grad():
        alone = model.loaded.model(torch.tensor(PROMPTS[:1])).logits[0]
    assert torch.equal(alone, model.logits(PROMPTS[:1], [Configuration()])[0])


@pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out is set to False"  # PEFT corrects the orientation of GPT-2 by itself
)
@every_family
def test_a_lora_of_peft_says_what_it_says_there(family: str, tmp_path: Path) -> None:
    save_adapter(deepcopy(loaded(family).model), PLAIN_KINDS["lora"](loaded(family).base), tmp_path)
    by_peft, base = load_by_peft(family, tmp_path), loaded(family)
    with torch.no_grad():  # the whole of it magnifies roundings
        for name, parameter in by_peft.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.1)
    model, ids = ConfiguredModel(base), torch.tensor(random_prompts([7, 7]))
    model.add(read_peft(tmp_path, base.base, "imported"))
    with model.applied(using("imported:0.1")), torch.no_grad():
        close(base.model(ids).logits, by_peft(input_ids=ids).logits)


def pulled(model: PreTrainedModel, ids: Tensor, module: nn.Module) -> tuple[Tensor, ...]:
    """A loss, its gradient at the input vectors, and what the module reads and says."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, given, y: seen.extend((given[0], y)))
    vectors = model.get_input_embeddings()(ids).detach().requires_grad_()
    loss = model(inputs_embeds=vectors).logits.log_softmax(-1)[..., 5].mean()
    handle.remove()
    (gradient,) = torch.autograd.grad(loss, vectors)
    return loss, gradient, *seen


@every_family
def test_gradients_and_hooks_are_those_of_merged_weights(family: str) -> None:
    uses, base = parse_uses("lora-1:0.5,lora-2:-1.5,lora-1"), deepcopy(loaded(family))
    merged, ids = merged_by_hand(family, uses), torch.tensor(random_prompts([5, 5, 5]))
    path = bricks_of(family)["lora-1"].spec.sites[0]
    expected = pulled(merged, ids, merged.get_submodule(path))
    base.model.requires_grad_(requires_grad=False)
    model = ConfiguredModel(base)
    for name, brick in bricks_of(family).items():
        model.add(brick, name)
    with model.applied(Configuration(bricks=uses)):
        found = pulled(base.model, ids, base.model.get_submodule(path))
    for mine, reference in zip(found, expected, strict=True):
        close(mine, reference)
    assert all(p.grad is None and not p.requires_grad for p in base.model.parameters())


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_gradients_go_through_every_change(family: str) -> None:
    model = configured(family)
    ids = torch.tensor(random_prompts([5, 5]))
    for bricks in CHANGES:
        with model.applied(using(uses_for(family, bricks))):
            vectors = model.loaded.model.get_input_embeddings()(ids).detach().requires_grad_()
            loss = model.loaded.model(inputs_embeds=vectors).logits.square().mean()
            (gradient,) = torch.autograd.grad(loss, vectors)
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_transformers_own_generation_says_what_a_served_row_says(family: str) -> None:
    model = configured(family)
    for bricks in CHANGES:
        row = using(uses_for(family, bricks), max_new_tokens=6)
        (expected,) = model.generate(PROMPTS[:1], [row])
        prompt = torch.tensor(PROMPTS[:1])
        with model.applied(row):
            said = model.loaded.model.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6,
                do_sample=False,
            )  # fmt: skip
        answer = said[0, prompt.shape[1] :].tolist()
        end = answer.index(1) if 1 in answer else len(answer)
        assert tuple(answer[:end]) == expected.tokens


def test_bricks_need_no_names_and_may_share_one() -> None:
    model, (one, two) = configured("llama"), (bricks_of("llama")[f"lora-{n}"] for n in (1, 2))
    (expected,) = model.logits(PROMPTS[:1], [using("lora-1,lora-2")])
    with ConfiguredModel(loaded("llama")).applied([one, two]), torch.no_grad():
        close(loaded("llama").model(torch.tensor(PROMPTS[:1])).logits[0], expected)


def test_without_bricks_the_model_is_itself() -> None:
    model, ids = configured("llama"), torch.tensor(PROMPTS[:1])
    with torch.no_grad():
        expected = model.loaded.model(ids).logits
        for nothing in ([], Configuration(), using("lora-1:0,prefix-1:0")):
            with model.applied(nothing):
                assert torch.equal(model.loaded.model(ids).logits, expected)
                shadowed = [m for m in model.loaded.model.modules() if "forward" in vars(m)]
                assert len(shadowed) == 1


@pytest.mark.parametrize("form", ["prefix", "prompt", "exit", "router"])
def test_what_depends_on_the_prompt_is_refused(form: str) -> None:
    model = configured("llama")
    refusal = rf"{form}-1 was to be applied to every batch, but a {form} depends on where prompts"
    with pytest.raises(ConfigurationError, match=refusal), model.applied(using(f"{form}-1")):
        pass
    with model.applied(using(f"{form}-1:0")):
        pass


def test_inside_no_batch_is_served_and_no_other_bricks_are_applied() -> None:
    model, again = configured("llama"), pytest.raises(ConfigurationError, match="another batch")
    other = configured("llama")
    with model.applied(using("lora-1")):
        with again:
            model.logits(PROMPTS, [Configuration()] * 3)
        with again, model.applied([]):
            pass
        with pytest.raises(ConfigurationError, match="the model is already changed"):
            other.logits(PROMPTS, [Configuration()] * 3)
    with other.applied([]), pytest.raises(ConfigurationError, match="the model is already ch"):
        model.logits(PROMPTS, [Configuration()] * 3)


def test_a_brick_of_another_base_is_refused() -> None:
    other = ConfiguredModel(wrap_model(tiny_model("llama", seed=1)))
    with pytest.raises(MisfitError, match="the base's weights differ"):
        other.applied([bricks_of("llama")["lora-1"]]).__enter__()


def test_leaving_by_an_exception_restores_the_model() -> None:
    model: Any = configured("llama")
    with pytest.raises(ZeroDivisionError), model.applied(using("codebook-1,mask-1")):
        raise ZeroDivisionError
    assert not any(
        "forward" in vars(m) or m._forward_pre_hooks for m in model.loaded.model.modules()
    )
