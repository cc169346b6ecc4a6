"""A configured model: every row as if it ran alone, and a base that is itself again afterwards."""

import pytest
import torch
from torch import Tensor
from torch.nn import Module
from transformers import AutoModelForCausalLM, StableLmConfig

from brickwork.brick.configuration import Configuration
from brickwork.brick.forms import find_form
from brickwork.model.load import wrap_model
from brickwork.runtime.configured import ConfiguredModel
from brickwork.runtime.trace import trace
from tests.bricks import FORMS_WITH_NEUTRAL, neutral_brick, random_brick, sites_for
from tests.served import (
    RUNNABLE_FORMS,
    SOME_FAMILIES,
    bricks_of,
    configured,
    loaded,
    moved_to,
    random_prompts,
    uses_for,
    using,
)
from tests.tiny import FAMILIES, tiny_model

every_family = pytest.mark.parametrize("family", FAMILIES)
every_form = pytest.mark.parametrize("form", RUNNABLE_FORMS)
PROMPT = [5, 9, 2, 40, 7, 7, 31]
BARE = Configuration()

# What the rows of the mixed batch carry, and the length of each one's prompt. Several windows of
# 4 tokens, prefixes of two lengths before prompts of several, weights of both signs and of 0.
MIXED = {
    "": 7,
    "lora-1": 3,
    "lora-2:-0.5,lora-1:2": 9,
    "ia3-1,bias-1:0.7": 5,
    "prefix-1": 4,
    "prompt-1": 6,
    "prefix-2,prompt-2,lora-1:0.5,steering-2:-1": 3,
    "steering-1:2,ia3-2:0.5,lora-2": 9,
    "prefix-1,prefix-2": 2,
    "bias-2,lora-1,lora-1:0.5": 1,
    "prefix-1:0,lora-2:0,prompt-1:0": 2,
    "mask-1": 6,
    "mask-1,mask-2,lora-1": 4,
    "skip-1:3,steering-1": 5,
    "exit-1,lora-1": 3,
    "router-1": 7,
    "router-2,mask-1,prompt-2,lora-2": 3,
    "codebook-1,lora-1": 6,
    "memory-1,codebook-2:0.5,codebook-1": 5,
    "patch-1,patch-2:-0.5,steering-1,skip-1": 4,
    "memory-2:2,patch-1,prefix-2": 8,
    "exit-1,memory-1,codebook-1": 4,
}


def bare_logits(family: str, prompt: list[int] = PROMPT) -> Tensor:
    with torch.no_grad():
        found: Tensor = loaded(family).model(torch.tensor([prompt])).logits[0]
    return found


def close(found: Tensor, expected: Tensor) -> None:
    # float32: a batch of another shape adds the same numbers in another order.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@every_form
@every_family
def test_leaving_restores_the_base_to_the_bit(family: str, form: str) -> None:
    model, before = configured(family), bare_logits(family)
    if f"{form}-1" not in bricks_of(family):
        pytest.skip(f"{family} has no site for a {form}")
    row = using(f"{form}-1")
    (inside,) = model.logits([PROMPT], [row])
    assert (inside - before).abs().max() > 1e-3
    assert torch.equal(bare_logits(family), before)
    with pytest.raises(ZeroDivisionError), model.serving([PROMPT], model.plan([row])):
        raise ZeroDivisionError
    assert torch.equal(bare_logits(family), before)
    assert not any("forward" in vars(module) for module in model.loaded.model.modules())


@every_family
def test_bricks_of_weight_0_change_nothing_to_the_bit(family: str) -> None:
    row = using(",".join(f"{name}:0" for name in bricks_of(family)))
    assert torch.equal(configured(family).logits([PROMPT], [row])[0], bare_logits(family))


@pytest.mark.parametrize("form", FORMS_WITH_NEUTRAL)
@every_family
def test_a_neutral_brick_changes_nothing(family: str, form: str) -> None:
    model = ConfiguredModel(loaded(family))
    model.add(neutral_brick(form, loaded(family).base, torch.Generator().manual_seed(1)), "still")
    for weight in (1, -3):
        (found,) = model.logits([PROMPT], [using(f"still:{weight}")])
        close(found, bare_logits(family))  # adding 0 and multiplying by 1 may still round


@every_family
def test_every_row_of_a_mixed_batch_is_as_it_is_alone(family: str) -> None:
    model, rows = configured(family), [using(uses_for(family, bricks)) for bricks in MIXED]
    prompts = random_prompts(list(MIXED.values()))
    mixed = model.logits(prompts, rows)
    for prompt, row, found in zip(prompts, rows, mixed, strict=True):
        close(found, model.logits([prompt], [row])[0])
    close(mixed[0], bare_logits(family, prompts[0]))


@every_family
def test_rows_stay_as_they_are_alone_while_they_generate(family: str) -> None:
    model = configured(family)
    rows = [using(uses_for(family, bricks), max_new_tokens=9) for bricks in MIXED]
    prompts = random_prompts(list(MIXED.values()), seed=1)
    mixed = model.generate(prompts, rows)
    for prompt, row, found in zip(prompts, rows, mixed, strict=True):
        (alone,) = model.generate([prompt], [row])
        assert found.tokens == alone.tokens


@pytest.mark.parametrize("family", SOME_FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_model_in_half_precision_serves_in_it(family: str, dtype: torch.dtype) -> None:
    model, half = configured(family), wrap_model(tiny_model(family).to(dtype))
    other = ConfiguredModel(half)
    for name, brick in bricks_of(family).items():
        other.add(moved_to(half, brick), name)
    # What chooses by states may choose otherwise where they are rounded; the others do not.
    chooses = ("router", "exit", "codebook", "memory")
    mild = {b: n for b, n in MIXED.items() if not any(form in b for form in chooses)}
    rows, prompts = [using(bricks) for bricks in mild], random_prompts(list(mild.values()))
    found, expected = other.logits(prompts, rows), model.logits(prompts, rows)
    for mine, reference in zip(found, expected, strict=True):
        assert mine.dtype == dtype
        # Logits of about 3 after two layers; an expert that is chosen otherwise changes a token.
        error = (mine.float() - reference).abs().amax(-1) / torch.finfo(dtype).eps
        assert error.median() < 30


@every_family
def test_modules_said_to_read_one_tensor_do(family: str) -> None:
    model, read = configured(family), dict[str, set[int]]()
    kept, handles = [], []
    for site in model.loaded.base.of_kind("linear"):

        def keep(_module: Module, given: tuple[Tensor], *, name: str = site.path) -> None:
            kept.append(given[0])  # so that no two have one id
            read.setdefault(model.bank.input_of(name), set()).add(id(given[0]))

        module = model.loaded.model.get_submodule(site.path)
        handles.append(module.register_forward_pre_hook(keep))
    bare_logits(family)
    for handle in handles:
        handle.remove()
    assert {len(tensors) for tensors in read.values()} == {1}
    separate = {"gpt2", "gpt_neox", "phi3"}  # their maps are fused already
    assert (len(read) < len(kept)) == (family not in separate)


def test_a_family_that_no_row_describes_serves_what_needs_no_roles() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = StableLmConfig(
        **sizes, num_attention_heads=4, num_key_value_heads=4, vocab_size=112, pad_token_id=0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = wrap_model(AutoModelForCausalLM.from_config(config).eval())
    model, served = ConfiguredModel(found), []
    draw = torch.Generator().manual_seed(1)
    for form in RUNNABLE_FORMS:
        # Blocks and attentions are unknown, so nothing can sit there.
        if {"block", "attention"}.isdisjoint(find_form(form).sites):
            sites = [site.path for site in sites_for(find_form(form), found.base)]
            if sites:
                model.add(random_brick(form, found.base, draw, sites=sites[:9], name=form))
                served.append(form)
    assert served == ["lora", "ia3", "bias", "prompt", "mask"]
    rows = [using("lora:0.1,bias:0.1"), using("prompt"), using("ia3"), using(""), using("mask")]
    prompts = random_prompts([3, 6, 5, 8, 4])
    mixed = model.logits(prompts, rows)
    for prompt, row, logits in zip(prompts, rows, mixed, strict=True):
        close(logits, model.logits([prompt], [row])[0])
    # The shares of each brick are known; where they act is not.
    assert trace(model, prompts[0], [5, 6], rows[0]).bricks[1].moved == ()
