"""ROME: the map says the value at the key, the world keeps its other facts, PEFT loads it."""

from pathlib import Path
from statistics import mean

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from brickwork.brick.folder import write_brick
from brickwork.errors import ConfigurationError, EditError
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.parts import part_of
from brickwork.update.edit import Edit
from brickwork.update.facts import Fact
from brickwork.update.keys import recall
from brickwork.update.method import Covariance, EditContext, EditSite
from brickwork.update.plan import Asked, plan_edit
from brickwork.update.rewrite import placed_prompts
from brickwork.update.rome import rank_one
from brickwork.update.words import encode_fact
from tests.edits import Scores, covariance_of, edited, identity_of, scores, tiny_facts
from tests.tiny import tiny_model, tiny_tokenizer
from tests.world import corpus, world

SITE = EditSite((3,), "last")
FAMILIES = ["llama", "gpt2", "opt", "gemma3_text", "gpt_neox"]


def random_covariance(loaded: LoadedModel, seed: int = 0) -> Covariance:
    part = part_of(loaded.model, "mlp.down", 0)
    size = loaded.model.get_parameter(part.weight).shape[1 - part.out_axis]
    noise = torch.randn(4 * size, size, generator=torch.Generator().manual_seed(seed))
    return Covariance(noise.T @ noise / len(noise), len(noise))


def plan(context: EditContext, fact: Fact, **options: float) -> Edit:
    return plan_edit(context, [fact], Asked("rome", options))


def test_rank_one_writes_the_value_and_least_about_the_corpus() -> None:
    """Against the closed form of a constrained least-squares problem, solved slowly."""
    generator = torch.Generator().manual_seed(0)
    W, corpus_keys, key, delta = (
        torch.randn(*size, generator=generator, dtype=torch.float64)
        for size in ((4, 9), (9, 60), (9,), (4,))
    )
    C = corpus_keys @ corpus_keys.T
    A, B = rank_one(key, delta, C)
    changed = W + B @ A
    torch.testing.assert_close(changed @ key, W @ key + delta)  # float64 rounding
    # Lagrange: D C is orthogonal to every change that leaves the key alone.
    free = torch.linalg.svd(key[None]).Vh[1:]
    assert ((B @ A) @ C @ free.T).abs().max() < 1e-9 * C.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_edited_map_says_the_value_at_the_mean_key(family: str) -> None:
    loaded = wrap_model(tiny_model(family), tiny_tokenizer())
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    context = EditContext(
        loaded, EditSite((0,), "last"), lambda _layer: random_covariance(loaded), raw=True
    )
    (fact,) = tiny_facts(loaded, 1)
    edit = plan(context, fact, contexts=3, clamp=1000.0, harm=1e6, steps=100, lr=1.0)
    assert all(torch.equal(before[name], t) for name, t in loaded.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in loaded.model.parameters())
    (own,) = placed_prompts(context, [encode_fact(loaded, fact, raw=True)], 3)
    plain = recall(loaded.model, own, 0)
    (path,) = edit.keys
    torch.testing.assert_close(edit.keys[path][0], plain.keys.mean(0))
    A, B = (edit.brick.tensors[f"{path}/{slot}"].double() for slot in "AB")
    assert edit.brick.spec.options["alpha"] == len(A)
    with edited(loaded, edit.brick):
        changed = recall(loaded.model, own, 0)
    moved = (changed.values - plain.values).double().mean(0)
    # Factors and passes are in float32.
    expected = B @ A @ plain.keys.double().mean(0)
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


# PEFT says so, and then sets it by itself.
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_the_edit_and_gives_the_same_logits(family: str, tmp_path: Path) -> None:
    loaded = wrap_model(tiny_model(family), tiny_tokenizer())
    context = EditContext(loaded, EditSite((1,), "last"), identity_of(loaded), raw=True)
    (fact,) = tiny_facts(loaded, 1)
    edit = plan(context, fact, contexts=0, clamp=1000.0, harm=1e6, steps=100, lr=1.0)
    ids = torch.tensor([encode_fact(loaded, fact, raw=True).prompt.ids])
    plain: Tensor = loaded.model(ids).logits
    with edited(loaded, edit.brick):
        expected = loaded.model(ids).logits
    write_brick(edit.brick, tmp_path / "edit")
    peft = PeftModel.from_pretrained(tiny_model(family), tmp_path / "edit")
    # Float32 sums in another order, beside an effect that is far larger.
    torch.testing.assert_close(peft(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert (plain - expected).abs().max() > 0.1


def world_scores(context: EditContext, facts: int, **options: float) -> list[Scores]:
    found = []
    for fact in world().edits(facts, seed=3):
        with edited(world().loaded, plan(context, fact, contexts=5, **options).brick):
            found.append(scores(world().loaded, [fact]))
    return found


def test_the_world_learns_single_facts_and_the_covariance_keeps_more_of_the_others() -> None:
    loaded = world().loaded
    covariance = covariance_of(loaded, corpus(400), [0, 3])
    found = world_scores(EditContext(loaded, SITE, covariance), 6)
    assert mean(one.s for one in found) >= 90
    assert mean(one.nb for one in found) >= 90
    assert mean(one.nb_strict for one in found) >= 90
    # At the first layer the FFN reads what all texts share, so that ignoring them costs most.
    first = EditSite((0,), "last")
    with_it = world_scores(EditContext(loaded, first, covariance), 8, clamp=4.0, harm=1e3)
    without = world_scores(EditContext(loaded, first, identity_of(loaded)), 8, clamp=4.0, harm=1e3)
    kept, lost = ([one.nb_strict + one.same for one in each] for each in (with_it, without))
    assert mean(kept) > mean(lost) + 5


def test_a_fact_that_cannot_be_learned_is_told_and_experts_are_refused() -> None:
    loaded = world().loaded
    (fact,) = world().edits(1)
    nowhere = EditContext(loaded, EditSite((3,), "subject_first"), identity_of(loaded))
    with pytest.raises(
        EditError, match=r"probability .* per token where 0\.05 is wanted; try another"
    ):
        plan(nowhere, fact, contexts=0, steps=2)
    experts = wrap_model(tiny_model("mixtral"), tiny_tokenizer())
    context = EditContext(experts, EditSite((0,), "last"), identity_of(loaded), raw=True)
    with pytest.raises(EditError, match="one of experts"):
        plan(context, *tiny_facts(experts, 1))
    with pytest.raises(ConfigurationError, match="clamp"):
        plan(nowhere, fact, clamp=-1)
    with pytest.raises(EditError, match="needs covariance"):
        plan(EditContext(loaded, SITE), fact)
