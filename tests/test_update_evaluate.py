"""Edits evaluated: against plain transformers, one prompt at a time, and what must be left out."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import hmean
from torch import Tensor

from brickwork.errors import EditError
from brickwork.model.load import LoadedModel
from brickwork.model.train import Encoded
from brickwork.update.answers import answer_scores
from brickwork.update.evaluate import Material, evaluate_edits
from brickwork.update.evaluation_results import EditEvaluation, Measured, evaluation_problems
from brickwork.update.facts import Fact, Probe
from brickwork.update.questions import questions_of
from brickwork.update.recall import own_answer
from tests.tiny import FAMILIES, tiny_model
from tests.world import world

TOLD = [
    ([5, 9, 33], [7]),
    ([5, 9, 33], [7, 8]),
    ([5, 9, 33], [60, 61, 62]),
    ([40], [41, 42]),
    ([40, 41], [42]),
    ([5, 9], [33, 7]),
    (list(range(50, 70)), [3]),
]


@torch.no_grad()
def alone(model: torch.nn.Module, prompt: Sequence[int], answer: Sequence[int]) -> list[Tensor]:
    """The log probabilities that each token of the answer is one of, without a batch."""
    logs = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
    return list(logs[len(prompt) - 1 : -1])


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_score_in_batches_as_they_do_alone(family: str) -> None:
    model = tiny_model(family)
    found = answer_scores(model, TOLD)
    for i, (prompt, answer) in enumerate(TOLD):
        logs = alone(model, prompt, answer)
        nats = -sum(float(row[token]) for row, token in zip(logs, answer, strict=True))
        # float32 logits, computed in batches of another shape
        assert found.nats[i].item() == pytest.approx(nats, rel=1e-4, abs=1e-4)
        right = sum(int(row.argmax()) == token for row, token in zip(logs, answer, strict=True))
        assert int(found.right[i]) == right
    assert found.tokens.tolist() == [len(answer) for _, answer in TOLD]


def test_a_prompt_with_many_answers_runs_once() -> None:
    model, seen = tiny_model("llama"), []
    hook = model.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.extend(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    answer_scores(model, [([5, 9, 33], [token]) for token in range(10)])
    hook.remove()
    assert seen == [[5, 9, 33]]
    assert answer_scores(model, []).nats.shape == (0,)


@contextmanager
def disturbed(loaded: LoadedModel) -> Iterator[None]:
    """The model with noise on what one of its blocks hands on: some answers change."""
    noise = torch.randn(96, generator=torch.Generator().manual_seed(5))
    block = loaded.model.get_submodule("model.layers.3")
    hook = block.register_forward_hook(lambda _m, _a, out: out + 4 * noise)
    try:
        yield
    finally:
        hook.remove()


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    found = world().edits(8, neighbours=4)
    # Answers of two tokens, too; the words of the world are single tokens.
    long = replace(found[0], target=f"{found[0].target} .", target_true=f"{found[0].target_true} .")
    return [long, *found[1:]]


@pytest.fixture(scope="module")
def found(facts: list[Fact]) -> EditEvaluation:
    loaded = world().loaded
    others = [fact for fact in world().edits(30, seed=4) if fact.id not in {f.id for f in facts}]
    material = Material(others=others[:12], texts=4, tokens=12, seed=2)
    return evaluate_edits(loaded, facts, lambda: disturbed(loaded), material)


Row = tuple[int, str, str, str]


def rows_of(facts: Sequence[Fact], kind: str) -> list[Row]:
    """The number of the fact, prompt, right answer and rival."""
    if kind == "neighbourhood":
        return [
            (i, p.prompt, p.answer, f.target) for i, f in enumerate(facts) for p in f.neighbours
        ]
    return [
        (i, prompt, f.target, f.target_true)
        for i, f in enumerate(facts)
        for prompt in ((f.prompt,) if kind == "efficacy" else f.paraphrases)
    ]


def expected(rows: Sequence[Row]) -> dict[str, float]:
    """The measures by plain loops, as the model is now: means within facts, then over facts."""
    tokenizer, model = world().loaded.tokenizer, world().loaded.model
    assert tokenizer is not None
    values: dict[str, dict[int, list[float]]] = {}
    for fact, prompt, right, rival in rows:
        ids = tokenizer(prompt).input_ids
        mean, hits = {}, {}
        for answer in (right, rival):
            tokens = tokenizer(answer).input_ids
            logs = alone(model, ids, tokens)
            pairs = list(zip(logs, tokens, strict=True))
            mean[answer] = float(np.mean([row[t].item() for row, t in pairs]))
            hits[answer] = [int(row.argmax()) == t for row, t in pairs]
        for name, value in (
            ("lenient", mean[right] > mean[rival]),
            ("magnitude", math.exp(mean[right]) - math.exp(mean[rival])),
            ("strict", all(hits[right])),
            ("tokens", np.mean(hits[right])),
        ):
            values.setdefault(name, {}).setdefault(fact, []).append(float(value))
    return {
        name: float(np.mean([np.mean(own) for own in by_fact.values()]))
        for name, by_fact in values.items()
    }


@pytest.mark.parametrize("kind", ["efficacy", "paraphrase", "neighbourhood"])
def test_every_form_is_what_plain_transformers_says(
    found: EditEvaluation, facts: list[Fact], kind: str
) -> None:
    rows = rows_of(facts, kind)
    before = expected(rows)
    with disturbed(world().loaded):
        after = expected(rows)
    assert before != after
    for name in before:
        one: Measured = getattr(getattr(found, kind), name)
        assert (one.facts, one.prompts) == (8, len(rows))
        # shares are exact; magnitudes come from float32 logits of other batches
        assert one.before.value == pytest.approx(before[name], abs=1e-5)
        assert one.after.value == pytest.approx(after[name], abs=1e-5)
        assert one.after.low <= one.after.value <= one.after.high


def test_s_is_the_harmonic_mean_of_the_three(found: EditEvaluation) -> None:
    for score, form in ((found.score, "lenient"), (found.strict_score, "strict")):
        assert score is not None
        parts = [getattr(found.group(g), form) for g in ("efficacy", "paraphrase", "neighbourhood")]
        assert score.before.value == pytest.approx(hmean([part.before.value for part in parts]))
        assert score.after.value == pytest.approx(hmean([part.after.value for part in parts]))


def test_kept_answers_are_counted_among_those_that_were_right(
    found: EditEvaluation, facts: list[Fact]
) -> None:
    rows = [(i, p.prompt, p.answer, p.answer) for i, f in enumerate(facts) for p in f.same_subject]

    def right() -> list[bool]:
        return [expected([row])["strict"] == 1 for row in rows]

    before = right()
    with disturbed(world().loaded):
        after = right()
    still = [b and a for b, a in zip(before, after, strict=True)]
    kept = found.same_subject
    assert (kept.prompts, kept.right, kept.still) == (len(rows), sum(before), sum(still))
    own = [
        np.mean([s for s, b, row in zip(still, before, rows, strict=True) if b and row[0] == i])
        for i in range(len(facts))
    ]
    assert kept.share is not None
    assert kept.share.value == pytest.approx(np.mean(own))
    assert 0 < kept.still < kept.right
    assert found.others.prompts + found.others.left_out == 12


def test_facts_that_did_not_stick_are_named_with_what_is_said(
    found: EditEvaluation, facts: list[Fact]
) -> None:
    assert [fact.id for fact in found.facts] == [fact.id for fact in facts]
    assert found.failed
    loaded = world().loaded
    assert loaded.tokenizer is not None
    with disturbed(loaded):
        for fact in found.failed:
            said = own_answer(loaded, loaded.tokenizer(fact.prompt).input_ids)
            assert fact.says == loaded.tokenizer.decode(said).strip() != fact.target
    assert not list(evaluation_problems(found))


def test_without_edits_nothing_changes_and_the_model_is_as_it_was(facts: list[Fact]) -> None:
    loaded = world().loaded
    weights = {name: one.clone() for name, one in loaded.model.state_dict().items()}
    found = evaluate_edits(loaded, facts[:2], noop, Material(texts=2, tokens=6))
    assert found.score is not None
    assert found.fluency is not None
    assert found.score.before == found.score.after
    assert (found.fluency.change.low, found.fluency.change.high) == (0, 0)
    assert all(torch.equal(weights[n], one) for n, one in loaded.model.state_dict().items())


@contextmanager
def noop() -> Iterator[None]:
    yield


def test_perplexities_are_those_of_transformers() -> None:
    loaded = world().loaded
    assert loaded.tokenizer is not None
    texts = ["Ada Stone lives in Paris .", "Hugo Snow plays the piano .", "Greta Hill eats rice ."]
    own = [Encoded(loaded.tokenizer(text).input_ids, 3) for text in texts]
    found = evaluate_edits(
        loaded, world().edits(1), lambda: disturbed(loaded), Material(instances={"facts": own})
    ).perplexity["facts"]

    @torch.no_grad()
    def loss() -> float:
        nats = [
            loaded.model(
                input_ids=torch.tensor([one.ids]),
                labels=torch.tensor([[-100] * 3 + one.ids[3:]]),
            ).loss.item() * (len(one.ids) - 3)
            for one in own
        ]  # fmt: skip
        return sum(nats) / sum(len(one.ids) - 3 for one in own)

    before = loss()
    with disturbed(loaded):
        after = loss()
    assert found.instances == 3
    # float32 losses, summed in another order
    assert found.before.value == pytest.approx(before, rel=1e-5)
    assert found.after.value == pytest.approx(after, rel=1e-5)
    assert found.rise.value == pytest.approx(math.exp(after - before) - 1, rel=1e-4)


def colour(subject: str, **more: object) -> Fact:
    fact = Fact(subject, subject, f"The colour of {subject} is", "blue", "red", relation="colour")
    return replace(fact, **more)  # type: ignore[arg-type]


def test_what_is_edited_itself_says_nothing_of_what_is_spared() -> None:
    sky = colour(
        "the sky",
        paraphrases=("Look: the sky is",),
        neighbours=tuple(
            Probe(text)
            for text in (
                "The  colour of THE GRASS is",  # an edited prompt, spelled otherwise
                "Look: the grass is",  # a paraphrase of one
                "They say that the grass is",  # an edited subject in the relation
                "The colour of the grasshopper is",  # another subject
                "The colour of snow is",
            )
        ),
        same_subject=(Probe("Look: the grass is"), Probe("How high the sky is")),
    )
    grass = colour("the grass", paraphrases=("Look: the grass is",))
    others = [colour("the grass", id="again"), colour("coal"), colour("the sky", relation="height")]
    found = questions_of([sky, grass], others)
    kinds = [question.kind for question in found.asked]
    assert found.left_out == {"neighbourhood": 3, "same_subject": 1, "others": 2}
    asked = [q.prompt for q in found.asked if q.kind == "neighbourhood"]
    assert asked == ["The colour of the grasshopper is", "The colour of snow is"]
    assert kinds.count("others") == 1
    assert kinds.count("paraphrase") == 2


def test_without_a_name_the_prompt_around_the_subject_is_the_relation() -> None:
    sky = colour("the sky", relation="", neighbours=(Probe("Now the colour of the grass is"),))
    found = questions_of([sky, colour("the grass", relation="")])
    assert found.left_out == {"neighbourhood": 1}


def test_where_the_old_answer_is_not_known_the_models_own_is_taken(facts: list[Fact]) -> None:
    loaded = world().loaded
    bare = [
        replace(
            fact, target_true="", neighbours=tuple(Probe(p.prompt) for p in fact.neighbours)
        )
        for fact in facts[1:4]
    ]  # fmt: skip
    found = evaluate_edits(loaded, bare, lambda: disturbed(loaded))
    assert found.efficacy.lenient is None
    assert found.efficacy.without_rival == 3
    assert found.score is None
    assert found.strict_score is not None
    near = found.neighbourhood
    assert near.strict is not None
    assert near.strict.before.value == 1
    assert near.without_rival == 0


def test_an_evaluation_of_nothing_is_refused() -> None:
    with pytest.raises(EditError, match="no fact was given; name at least one"):
        evaluate_edits(world().loaded, [], noop)


def test_an_answer_without_tokens_is_refused() -> None:
    fact = replace(world().edits(1)[0], target=" ")
    with pytest.raises(EditError, match="was to be answered ' ', which has no tokens"):
        evaluate_edits(world().loaded, [fact], noop)
