"""Harm: what edits say about other texts is known, and stays in bounds however many there are."""

import pytest

from brickwork.errors import EditError
from brickwork.model.load import wrap_model
from brickwork.model.parts import part_of
from brickwork.runtime.configured import ConfiguredModel
from brickwork.update.contexts import Placed
from brickwork.update.harm import acting_change, mean_square
from brickwork.update.keys import recall
from brickwork.update.method import EditContext, EditSite
from brickwork.update.plan import Asked, plan_edit
from tests.edits import covariance_of, edited, identity_of, scores, tiny_facts
from tests.tiny import tiny_model, tiny_tokenizer
from tests.world import corpus, world


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox"])
def test_the_change_on_a_corpus_equals_what_hooks_see_there(family: str) -> None:
    loaded = wrap_model(tiny_model(family), tiny_tokenizer())
    context = EditContext(loaded, EditSite((0,), "last"), identity_of(loaded), raw=True)
    (fact,) = tiny_facts(loaded, 1)
    options = {"contexts": 0, "clamp": 1000.0, "harm": 1e6, "steps": 100}
    edit = plan_edit(context, [fact], Asked("rome", options))
    (path,) = edit.keys
    texts = [Placed((5, 9, 13, 7, 21, 3), place) for place in range(6)]
    plain = recall(loaded.model, texts, 0)
    C = plain.keys.T @ plain.keys / 6
    assert not acting_change(loaded.model, path, len(C)).any()
    with edited(loaded, edit.brick):
        moved = recall(loaded.model, texts, 0).values - plain.values
        found = mean_square(acting_change(loaded.model, path, len(C)), C.double())
    # Float32 differences of what the map says with and without the edit.
    assert found == pytest.approx(float(moved.square().sum(1).mean()), rel=1e-3)
    with ConfiguredModel(loaded).applied([edit.brick]):
        served = mean_square(acting_change(loaded.model, path, len(C)), C.double())
    assert served == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize(("method", "harm"), [("memit", 0.11), ("alphaedit", 0.18)])
def test_batches_one_on_the_other_stay_within_the_harm_that_is_allowed(
    method: str, harm: float
) -> None:
    loaded = world().loaded
    facts, site = world().edits(16, seed=7), EditSite((2, 3, 4), "last")
    covariance = covariance_of(loaded, corpus(400), site.layers)
    context = EditContext(loaded, site, covariance)
    asked = Asked(method)
    one = plan_edit(context, facts[:8], asked)
    with edited(loaded, one.brick):
        later = EditContext(loaded, site, covariance, earlier=one.keys)
        two = plan_edit(later, facts[8:], asked)
    places = [Placed(tuple(loaded.tokenizer(f.prompt).input_ids), -1) for f in facts]
    said = recall(loaded.model, places, 4).states.square().sum(1).max()
    with edited(loaded, one.brick, two.brick):
        # The defaults, and as much again for what the two have in common.
        for layer, path in zip(site.layers, one.keys, strict=True):
            C = covariance(layer).matrix.double()
            change = acting_change(loaded.model, path, len(C))
            assert mean_square(change, C) < 2 * harm**2 * float(said)
        found = scores(loaded, facts)
    assert found.nb_strict >= 90
    assert found.same >= 90


def test_one_fact_too_many_for_a_layer_is_told_and_changes_nothing() -> None:
    loaded = world().loaded
    site = EditSite((3,), "last")
    context = EditContext(loaded, site, covariance_of(loaded, corpus(400), [3]))
    (fact,) = world().edits(1, seed=3)
    plan_edit(context, [fact], Asked("rome", {"contexts": 0}))
    with pytest.raises(EditError, match=r"layer 3 would change .* more than 1%; revoke other"):
        plan_edit(context, [fact], Asked("rome", {"contexts": 0, "harm": 0.01}))
    # All of the room is taken by what acts already.
    down = loaded.model.get_submodule(part_of(loaded.model, "mlp.down", 3).module)
    hook = down.register_forward_hook(
        lambda _module, args, out: out + args[0].sum(-1, keepdim=True)
    )
    with pytest.raises(EditError, match="revoke other facts"):
        plan_edit(context, [fact], Asked("memit"))
    hook.remove()
