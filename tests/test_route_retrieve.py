"""Retriever: the right bricks, none off topic, the same for one text as for many."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brickwork.errors import DataError
from brickwork.route.lexical import TfidfEmbedder
from brickwork.route.retrieve import Hit, Retrieval, Retriever
from brickwork.route.texts import BrickTexts
from tests.letters import Letters, MemoryCache, brick

CORPUS = [
    brick("french", "Translate into French: good night", "How do you say cat in French?",
          "Put this sentence into French", "French for umbrella", function="Translate to French"),
    brick("shell", "Give a shell command that lists files", "Shell command to delete a folder",
          "Which shell command counts lines?", "Find a process with a shell command"),
    brick("sums", "What is 12 plus 30?", "What is 7 times 6?", "What is 9 minus 4?",
          "What is 81 divided by 9?", function="Arithmetic with two numbers"),
]  # fmt: skip
WORDS = Retriever(CORPUS, TfidfEmbedder(CORPUS))
FRUIT, METAL = (
    brick("fruit", "aab", "abb", "aabb", "abab"),
    brick("metal", "xxy", "xyy", "xxyy", "xyxy"),
)
LETTERS = Retriever([FRUIT, METAL], Letters())
texts = st.text(alphabet="abxyz -", max_size=8)


def references(hits: tuple[Hit, ...]) -> list[str]:
    return [hit.reference for hit in hits]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("How do you say dog in French?", "french"),
        ("Which shell command shows a process?", "shell"),
        ("What is 3 plus 9?", "sums"),
    ],
)
def test_finds_the_brick_of_an_instruction(text: str, expected: str) -> None:
    found = WORDS.retrieve(text)
    assert references(found.chosen) == [expected]
    assert not found.abstained
    assert found.reason == ""
    assert found.chosen[0].weight == pytest.approx(1)
    assert len(found.hits) == 3


@pytest.mark.parametrize(
    "text", ["My cat sneezes all day long", "Compose a haiku about autumn", "zzz qqq", "", " \n"]
)
def test_abstains_off_topic_and_says_why(text: str) -> None:
    found = WORDS.retrieve(text)
    assert found.abstained
    assert found.chosen == ()
    assert "no brick scores above its threshold; the best," in found.reason
    assert len(found.hits) == 3  # shown all the same


@settings(max_examples=30)
@given(st.lists(texts, max_size=6))
def test_many_texts_are_as_one_by_one(many: list[str]) -> None:
    together = LETTERS.retrieve_many(many)
    assert len(together) == len(many)
    for found, text in zip(together, many, strict=True):
        alone = LETTERS.retrieve(text)
        assert references(found.chosen) == references(alone.chosen)
        for one, other in zip(found.hits, alone.hits, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-6)  # BLAS adds in other orders


@settings(max_examples=20)
@given(texts, st.permutations([FRUIT, METAL, brick("mixed", "abxy", "axby", "ayx")]))
def test_the_order_of_bricks_is_no_matter(text: str, order: list[BrickTexts]) -> None:
    expected = Retriever(sorted(order, key=lambda b: b.reference), Letters()).retrieve(text)
    assert Retriever(order, Letters()).retrieve(text).hits == expected.hits


def test_another_brick_changes_no_raw_score_of_the_others() -> None:
    more = Retriever([FRUIT, METAL, brick("nuts", "mno", "mmn")], Letters())
    scores = {hit.reference: hit.score for hit in more.retrieve("abbax").hits}
    for hit in LETTERS.retrieve("abbax").hits:
        assert scores[hit.reference] == pytest.approx(hit.score, abs=1e-6)


@settings(max_examples=30)
@given(texts)
def test_what_is_chosen_lies_above_its_threshold_and_close_to_the_best(text: str) -> None:
    found = LETTERS.retrieve(text)
    assert LETTERS.calibration is not None
    close = 0.1 * float(LETTERS.calibration.reach.mean())
    for hit in found.hits:
        assert (hit.weight > 0) == hit.chosen
    for hit in found.chosen:
        assert hit.score > hit.threshold
        assert hit.score >= found.chosen[0].score - close - 1e-6
    assert math.fsum(hit.weight for hit in found.hits) == pytest.approx(0 if found.abstained else 1)
    assert [hit.score for hit in found.hits] == sorted((h.score for h in found.hits), reverse=True)


def test_two_bricks_that_do_the_same_are_both_chosen_with_equal_weight() -> None:
    twin = brick("berries", *FRUIT.exemplars)
    found = Retriever([FRUIT, twin, METAL], Letters()).retrieve("abba", top=1)
    assert references(found.hits) == ["berries", "fruit"]  # both, though one was asked for
    assert [hit.weight for hit in found.chosen] == pytest.approx([0.5, 0.5])


def test_top_says_how_many_hits_are_shown() -> None:
    assert len(LETTERS.retrieve("aab", top=1).hits) == 1
    assert len(LETTERS.retrieve("aab", top=9).hits) == 2
    with pytest.raises(DataError, match="the 0 best bricks; ask for 1 or more"):
        LETTERS.retrieve("aab", top=0)


@pytest.mark.parametrize("corpus", [[], [brick("silent"), brick("mute", " ")]])
def test_without_texts_it_always_abstains_and_says_so(corpus: list[BrickTexts]) -> None:
    retriever = Retriever(corpus, TfidfEmbedder(corpus), background=["xyz"])
    found = retriever.retrieve("aab")
    assert found == Retrieval((), retriever.embedder.id, found.seconds, found.reason)
    assert found.abstained
    assert "no brick says what it is for" in found.reason
    assert retriever.calibration is None
    assert retriever.without_texts == tuple(sorted(b.reference for b in corpus))


def test_background_instructions_are_turned_away() -> None:
    background = ("What is the plot of Hamlet?", "What is love?", "What is new?") * 2
    corpus = CORPUS[2:]
    guessing = Retriever(corpus, TfidfEmbedder(corpus))
    taught = Retriever(corpus, TfidfEmbedder(corpus), background=background)
    assert guessing.calibration is not None
    assert taught.calibration is not None
    assert taught.calibration.note == ""
    assert all(found.abstained for found in taught.retrieve_many(background))
    assert not taught.retrieve("What is 12 minus 7?").abstained


def test_vectors_come_from_the_cache() -> None:
    cache = MemoryCache()
    first = Retriever([FRUIT, METAL], Letters(), cache=cache)
    assert sorted(content for _, content in cache.kept) == sorted([FRUIT.hash, METAL.hash])
    again = Retriever([FRUIT, METAL], Letters(), cache=cache)
    assert again.retrieve("aab").hits == first.retrieve("aab").hits
