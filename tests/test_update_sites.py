"""Where to edit: what tracing says, what it can say of a model without the facts, and refusals."""

from dataclasses import replace

import pytest

from brickwork.errors import EditError
from brickwork.model.load import wrap_model
from brickwork.update.facts import Fact
from brickwork.update.method import EditContext, EditSite
from brickwork.update.plan import Asked, plan_edit
from brickwork.update.sites import find_site
from brickwork.update.words import PLACES, EncodedFact, encode_fact
from tests.edits import covariance_of, edited, scores
from tests.tiny import tiny_model, tiny_tokenizer
from tests.world import corpus, world


def encoded(n: int) -> list[EncodedFact]:
    return [encode_fact(world().loaded, fact) for fact in world().edits(n)]


def test_the_world_model_is_to_be_edited_at_the_last_token() -> None:
    found = find_site(world().loaded, encoded(6), layers=1)
    effects = {
        (row.place, row.layer): row.effect.value
        for row in found.trace.averages
        if row.place in PLACES and row.layer > 0  # which is passed over
    }
    best = max(effects, key=lambda cell: effects[cell])
    assert found.site == EditSite((best[1],), "last")
    assert (best[0], found.note) == ("last", "")
    assert len(found.trace.facts) == 6


def test_layers_are_in_a_row_and_end_at_the_best_that_has_enough_before_it() -> None:
    found = find_site(world().loaded, encoded(4), layers=3)
    last = found.site.layers[-1]
    assert found.site.layers == (last - 2, last - 1, last)
    effects = {r.layer: r.effect.value for r in found.trace.averages if r.place == found.site.place}
    assert effects[last] == max(effects[layer] for layer in range(2, 6))


def test_no_more_facts_are_traced_than_asked_for_and_the_seed_chooses_them() -> None:
    facts = encoded(8)
    first, again, other = (
        find_site(world().loaded, facts, layers=1, most=2, seed=seed) for seed in (0, 0, 1)
    )
    assert len(first.trace.facts) == 2
    assert first == again
    assert {f.id for f in first.trace.facts} != {f.id for f in other.trace.facts}


def test_without_a_known_answer_what_the_model_says_itself_is_traced() -> None:
    unknown = [replace(fact, true=()) for fact in encoded(2)]
    found = find_site(world().loaded, unknown, layers=1)
    assert "the old answer of none of 2 facts" in found.note
    assert len(found.trace.facts) == 2
    assert found.site.place == "last"


def tiny_facts(family: str) -> tuple[EncodedFact, ...]:
    loaded = wrap_model(tiny_model(family), tiny_tokenizer(), family)
    return (encode_fact(loaded, Fact("a", "Ada", "we say Ada has", "oil"), raw=True),)


def test_layers_with_experts_are_passed_over() -> None:
    """The first of the two layers is dense."""
    loaded = wrap_model(tiny_model("qwen3_moe"), tiny_tokenizer(), "tiny")
    found = find_site(loaded, tiny_facts("qwen3_moe"), layers=1)
    assert found.site.layers == (0,)
    assert found.site.place in PLACES
    assert "the site is uncertain" in found.note  # a random model recalls nothing anywhere
    with pytest.raises(EditError, match="of the 2 layers 1 have an FFN without experts"):
        find_site(loaded, tiny_facts("qwen3_moe"), layers=2)


def test_a_model_of_experts_alone_and_no_facts_are_refused() -> None:
    loaded = wrap_model(tiny_model("mixtral"), tiny_tokenizer(), "tiny")
    with pytest.raises(EditError, match="such as grace"):
        find_site(loaded, tiny_facts("mixtral"), layers=1)
    with pytest.raises(EditError, match="there are no facts to trace"):
        find_site(world().loaded, [], layers=1)


def test_facts_whose_answer_needs_the_subject_are_traced_before_those_that_copy_it() -> None:
    loaded = world().loaded
    facts = encoded(4)
    # The same facts in prompts that already say the answer, so that it can be copied.
    copied = [
        encode_fact(loaded, replace(f.fact, id=f"copied {n}", prompt=said))
        for n, f in enumerate(facts)
        if (said := f"{f.fact.prompt} {f.fact.target_true} . {f.fact.prompt}")
    ]
    found = find_site(loaded, [*copied, *facts], layers=1, most=4)
    assert {f.id for f in found.trace.facts} == {f.fact.id for f in facts}


@pytest.mark.slow
def test_edits_at_the_located_site_beat_those_at_the_worst_by_fifty_points() -> None:
    """The bar of issue 6, with ROME edits one at a time; a site that cannot be edited has S 0."""
    loaded, facts = world().loaded, world().edits(8)
    covariance = covariance_of(loaded, corpus(200), range(6))

    def mean_score(site: EditSite) -> float:
        found = []
        for fact in facts:
            context = EditContext(loaded, site, covariance, raw=True)
            try:
                edit = plan_edit(context, [fact], Asked("rome"))
            except EditError:
                found.append(0.0)
                continue
            with edited(loaded, edit.brick):
                found.append(scores(loaded, [fact], raw=True).s)
        return sum(found) / len(found)

    best = find_site(loaded, [encode_fact(loaded, fact) for fact in facts], layers=1)
    low = min(
        (row for row in best.trace.averages if row.place in PLACES),
        key=lambda row: row.effect.value,
    )
    assert low.place in PLACES
    worst = EditSite((low.layer,), low.place)
    assert mean_score(best.site) > mean_score(worst) + 50
