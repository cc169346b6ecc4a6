"""Where to edit: what tracing says, what it can say of a model without the facts, and refusals."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from brickwork.errors import EditError
from brickwork.model.load import wrap_model
from brickwork.update.contexts import Placed
from brickwork.update.facts import Fact
from brickwork.update.keys import recall
from brickwork.update.method import EditContext, EditSite
from brickwork.update.plan import Asked, plan_edit
from brickwork.update.recall import recall_fact
from brickwork.update.selectivity import selectivity
from brickwork.update.sites import choose_site, find_site
from brickwork.update.tracing import TraceRecipe, trace
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
    (layer,) = found.site.layers
    assert (found.site.place, found.note) == ("last", "")
    # What is read there is nearly all of the subject in every layer, so effects decide.
    assert effects["last", layer] > 0.9 * max(effects.values())
    assert len(found.trace.facts) == 6


def test_a_place_that_reads_alike_for_all_subjects_is_not_the_site(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded, facts = world().loaded, encoded(4)
    recalls = [recall_fact(loaded, fact, "true") for fact in facts]
    tracing = trace(loaded, recalls, TraceRecipe(("mlp",), 2, window=1, places=True))
    real = selectivity(loaded.model, recalls, samples=2, noise=tracing.noise, seed=0)
    alike = {cell: 0.0 if cell[0] == "last" else share for cell, share in real.items()}
    assert choose_site(loaded, tracing, recalls)[0].place == "last"
    monkeypatch.setattr("brickwork.update.sites.selectivity", lambda *_args, **_kwargs: alike)
    site, note = choose_site(loaded, tracing, recalls, layers=2)
    assert site == EditSite((1, 2), "subject_last")  # a quarter of 6 layers is 1.5, so 2
    assert "the site is uncertain, and a usual one was taken" in note


def test_where_effects_are_faint_the_place_is_the_one_that_tells_subjects_apart() -> None:
    """The world model recalls this fact at several places, so that none alone brings it back."""
    loaded = world().loaded
    recalls = [recall_fact(loaded, fact, "true") for fact in encoded(1)]
    tracing = trace(loaded, recalls, TraceRecipe(("mlp",), places=True))
    site, note = choose_site(loaded, tracing, recalls)
    assert site == EditSite((2,), "last")
    assert "the site is uncertain" in note


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen3_moe"])
def test_selectivity_is_what_noise_on_the_subject_leaves_of_a_key(family: str) -> None:
    """Against keys read one prompt at a time, with the noise put into the embeddings by hand."""
    loaded = wrap_model(tiny_model(family), tiny_tokenizer(), family)
    (fact,) = tiny_facts(family)
    one = recall_fact(loaded, fact, "target")
    found = selectivity(loaded.model, [one], samples=3, noise=0.5, seed=7)
    noise = 0.5 * torch.randn(
        3, one.prompt.stop - one.prompt.start, loaded.model.config.hidden_size,
        generator=torch.Generator().manual_seed(7),
    )  # fmt: skip
    layers = {layer for _, layer in found}
    assert layers == ({0} if family == "qwen3_moe" else {0, 1})
    for place, layer in found:
        prompt = [Placed(one.prompt.ids, one.prompt.position(place))]
        key = recall(loaded.model, prompt, layer).keys[0].double()
        kept = []
        for row in noise:
            embedding = loaded.model.get_input_embeddings()

            def noisy(_module: nn.Module, _args: object, out: Tensor, row: Tensor = row) -> Tensor:
                return torch.cat(
                    [out[:, : one.prompt.start], out[:, one.prompt.start : one.prompt.stop] + row,
                     out[:, one.prompt.stop :]], dim=1,
                )  # fmt: skip

            with ExitStack() as stack:
                stack.callback(embedding.register_forward_hook(noisy).remove)
                changed = recall(loaded.model, prompt, layer).keys[0].double()
            kept.append(min(max(float(changed @ key / (key @ key)), 0), 1))
        # Float32 states; a batch of three rounds otherwise than one row.
        assert found[place, layer] == pytest.approx(1 - sum(kept) / 3, abs=1e-4)


def test_layers_are_in_a_row_and_end_at_the_best_that_has_enough_before_it() -> None:
    found = find_site(world().loaded, encoded(4), layers=3)
    last = found.site.layers[-1]
    assert found.site.layers == (last - 2, last - 1, last)
    effects = {r.layer: r.effect.value for r in found.trace.averages if r.place == found.site.place}
    assert effects[last] > 0.9 * max(effects[layer] for layer in range(2, 6))


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
