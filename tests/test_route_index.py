"""Index: a slow loop agrees, cached vectors are not made twice, twins are told from rivals."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from brickwork.brick.spec import Function
from brickwork.errors import DataError, StoreError
from brickwork.route.embedders import Vectors, unit
from brickwork.route.index import Index, build_index
from brickwork.route.texts import BrickTexts, corpus_of
from brickwork.store.store import Store
from tests.bricks import paper_base, random_brick
from tests.letters import Letters, MemoryCache, brick


def random_index(sizes: Sequence[tuple[int, bool]], seed: int) -> Index:
    """Bricks with so many instructions each, and a function or none, at random places."""
    chance = np.random.default_rng(seed)
    bricks, matrices = [], []
    for number, (count, function) in enumerate(sizes):
        texts = tuple(f"{number} {place}" for place in range(count))
        bricks.append(brick(f"b{number}", *texts, function=f"f{number}" if function else ""))
        matrices.append(unit(chance.normal(size=(count + function, 5))))
    return Index(tuple(bricks), tuple(matrices))


def cosine(one: Vectors, other: Vectors) -> float:
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else 0.0


sizes = st.lists(
    st.tuples(st.integers(0, 4), st.booleans()).filter(lambda pair: pair[0] or pair[1]),
    min_size=1,
    max_size=5,
)


@settings(max_examples=25)
@given(sizes, st.integers(0, 99))
def test_scores_are_the_cosines_of_scikit_learn(shape: list[tuple[int, bool]], seed: int) -> None:
    index = random_index(shape, seed)
    queries = unit(np.random.default_rng(seed + 1).normal(size=(3, 5)))
    expected = cosine_similarity(queries, np.stack([m.mean(0) for m in index.matrices]))
    assert index.scores(queries) == pytest.approx(expected, abs=1e-5)  # ours is float32


@settings(max_examples=25)
@given(sizes, st.integers(0, 99))
def test_a_rehearsed_instruction_is_scored_as_if_it_were_not_there(
    shape: list[tuple[int, bool]], seed: int
) -> None:
    index = random_index(shape, seed)
    found = index.rehearsal
    rows = [(own, place) for own, (count, _) in enumerate(shape) for place in range(count or 1)]
    assert found.owner.tolist() == [own for own, _ in rows]
    for (own, place), scores in zip(rows, found.scores, strict=True):
        for other, matrix in enumerate(index.matrices):
            rest = np.delete(matrix, place, 0) if other == own else matrix
            expected = cosine(index.matrices[own][place], rest.sum(0))
            if other == own and shape[own][0] < 2:
                expected = np.nan
            assert scores[other] == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_accuracy_counts_the_left_out_instructions_that_find_their_brick() -> None:
    corpus = [brick("a", "aaa", "aab", "bba"), brick("b", "bbb", "bbbb")]
    # "bba" is nearer to the b's, all others are nearer to their own
    assert build_index(corpus, Letters()).rehearsal.accuracy == pytest.approx(4 / 5)


def test_accuracy_is_unknown_where_no_brick_has_a_rival_or_a_second_instruction() -> None:
    for corpus in ([brick("a", "aa", "ab")], [brick("a", "aa"), brick("b", "bb")]):
        assert np.isnan(build_index(corpus, Letters()).rehearsal.accuracy)


def test_the_order_of_bricks_is_no_matter() -> None:
    corpus = [brick("a", "ab", "ac"), brick("b", "bb", "cc"), brick("c", "dd")]
    one, other = (build_index(order, Letters()) for order in (corpus, corpus[::-1]))
    assert one.bricks == other.bricks
    assert np.array_equal(one.centroids, other.centroids)


def test_another_brick_changes_no_score_to_the_bit() -> None:
    corpus = [brick("a", "ab", "ac"), brick("z", "bb", "cc")]
    queries = Letters().embed(["abc", "bcd"])
    before = build_index(corpus, Letters()).scores(queries)
    after = build_index([*corpus, brick("m", "zz")], Letters()).scores(queries)
    assert np.array_equal(before, after[:, [0, 2]])


def test_blank_and_repeated_exemplars_and_bricks_without_texts_do_not_count() -> None:
    said = brick("a", "ab", " ab ", "", "  ", "cd", function=" ")
    assert said.texts == ("ab", "cd")
    assert [b.reference for b in build_index([said, brick("b", " ")], Letters()).bricks] == ["a"]


def test_refuses_a_brick_that_is_there_twice() -> None:
    with pytest.raises(DataError, match=r"a .* is in the corpus 2 times"):
        build_index([brick("a", "ab"), brick("a", "ab")], Letters())


class Counting(Letters):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.seen.extend(texts)
        return super().embed(texts)


def test_a_brick_more_embeds_that_brick_alone() -> None:
    cache, corpus = MemoryCache(), [brick("a", "ab", "ac", function="f"), brick("b", "bb")]
    build_index(corpus, Counting(), cache)
    embedder = Counting()
    cached = build_index([*corpus, brick("c", "cc", "dd")], embedder, cache)
    assert embedder.seen == ["cc", "dd"]
    assert np.array_equal(
        cached.centroids, build_index([*corpus, brick("c", "cc", "dd")], Letters()).centroids
    )


def test_vectors_of_other_texts_are_not_used() -> None:
    cache, embedder = MemoryCache(), Counting()
    build_index([brick("a", "ab", "ac")], Letters(), cache)
    changed = BrickTexts(brick("a").hash, "a", "", ("xy", "xz"))
    build_index([changed], embedder, cache)
    assert embedder.seen == ["xy", "xz"]


def test_vectors_that_depend_on_the_corpus_are_not_kept() -> None:
    class Fitted(Letters):
        fitted = True

    cache = MemoryCache()
    build_index([brick("a", "ab")], Fitted(), cache)
    assert not cache.kept


def test_a_store_is_such_a_cache_and_one_that_cannot_be_written_is_no_hindrance(
    tmp_path: Path,
) -> None:
    generator, base = torch.Generator().manual_seed(0), paper_base()
    texts = Function(text="from French", exemplars=("ab", "bc"))
    with Store.open(tmp_path / "store") as store:
        store.add(random_brick("lora", base, generator, name="fr-en", function=texts))
        corpus = corpus_of(store.list())
        first = build_index(corpus, Letters(), store)
        embedder = Counting()
        again = build_index(corpus, embedder, store)
    assert (corpus[0].reference, corpus[0].texts) == ("fr-en@1", ("ab", "bc", "from French"))
    assert not embedder.seen
    assert np.array_equal(first.centroids, again.centroids)

    class ReadOnly(MemoryCache):
        def put_vectors(self, *_: object) -> None:
            raise StoreError("can only be read")

    unkept = build_index(corpus, Letters(), ReadOnly())
    assert np.array_equal(unkept.centroids, first.centroids)


def test_bricks_with_a_shared_text_are_twins() -> None:
    corpus = [brick("a", "ab", "cd"), brick("b", "Cd", "xy"), brick("c", "zz")]
    found = build_index(corpus, Letters()).rehearsal
    assert found.same.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    assert np.array_equal(found.same, found.twins)


def test_bricks_that_suit_each_others_instructions_are_twins() -> None:
    corpus = [
        brick("a", "aab", "abb", "aabb"),
        brick("b", "baa", "bba", "bbaa"),
        brick("c", "xxy", "xyy", "xxyy"),
    ]
    found = build_index(corpus, Letters()).rehearsal
    assert not found.same[0, 1]
    assert found.twins.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
