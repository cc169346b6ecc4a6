"""Labelled instances: read, told apart by source, split, hashed and turned into tokens."""

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brickwork.errors import DataError, UnknownNameError
from brickwork.measure import records
from brickwork.measure.instances import (
    Instance,
    content_hash,
    default_evaluation,
    encode_instances,
    read_instances,
    sample_instances,
    split_instances,
    with_sources,
)
from brickwork.model.load import LoadedModel, load_model
from brickwork.model.train import Encoded
from brickwork.model.words import encode
from brickwork.reference import tokenizer as reference_tokenizer
from brickwork.reference.paths import model_folder
from brickwork.reference.probe import probe_instances

GOOD = {"functionality": "Math", "prompt": "1+1?", "response": "2"}


def written(folder: Path, *lines: str | bytes, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return path


def test_reads_what_was_written_gzipped_or_not(tmp_path: Path) -> None:
    full = {**GOOD, "id": 7, "task": "sums", "source": "me", "licence": "none", "score": 3}
    lines = ["\ufeff" + json.dumps(full), "", json.dumps({**GOOD, "prompt": "é\u2028", "id": None})]
    path = written(tmp_path, *lines)
    packed = tmp_path / "no-suffix-that-tells"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    expected = [Instance("Math", "1+1?", "2", "7", "sums", "me"), Instance("Math", "é\u2028", "2")]
    assert read_instances(path) == read_instances(packed) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"functionality": ', r"line 2 is not JSON .*'\{\"functionality\":'; write one JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("[1, 2]", r"line 2 holds '\[1, 2\]', which is no JSON object"),
        ("{}", r"line 2 has no functionality \(its fields: none\)"),
        ('{"functionality": "A", "prompt": "p"}', r"no response \(its fields: functionality, pr"),
        (json.dumps({**GOOD, "prompt": 3}), "line 2: prompt is 3, not text"),
        (json.dumps({**GOOD, "prompt": " \n"}), "line 2 has an empty prompt"),
        (json.dumps({**GOOD, "functionality": ""}), "line 2 has an empty functionality"),
        (json.dumps({**GOOD, "response": None}), "line 2: response is null, not text"),
        (json.dumps({**GOOD, "source": ["a"]}), r"line 2: source is \[\"a\"\], not text"),
        (json.dumps({**GOOD, "response": "\ud800"}), "response holds half of a surrogate pair"),
        (b'{"functionality": "\xff"}', r"line 2 is not UTF-8 \(byte 20 is 0xff\)"),
    ],
)
def test_names_the_line_and_what_is_wrong(tmp_path: Path, line: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_instances(written(tmp_path, json.dumps(GOOD), line, json.dumps(GOOD)))


def test_an_empty_response_is_a_response(tmp_path: Path) -> None:
    assert read_instances(written(tmp_path, json.dumps({**GOOD, "response": ""})))[0].response == ""


def test_refuses_files_that_hold_no_instances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"none.jsonl'.*No such file"):
        read_instances(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="directory"):
        read_instances(tmp_path)
    with pytest.raises(DataError, match="has no line; write one JSON object"):
        read_instances(written(tmp_path, "", " \t"))
    many = gzip.compress("\n".join(json.dumps(GOOD) for _ in range(9000)).encode())
    with pytest.raises(DataError, match=r"gzip file .* is damaged after line \d+"):
        read_instances(written(tmp_path, many[:-20]))
    flipped = many[:60] + bytes(255 - byte for byte in many[60:90]) + many[90:]
    with pytest.raises(DataError, match="is damaged after line"):
        read_instances(written(tmp_path, flipped))
    monkeypatch.setattr(records, "LONGEST_LINE", 100)
    with pytest.raises(DataError, match="line 2 is longer than 100 bytes"):
        read_instances(written(tmp_path, json.dumps(GOOD), "x" * 200))


def test_takes_sources_from_a_field() -> None:
    one = [Instance("A", "p", "r", "x-1", "squad_fr", "web"), Instance("B", "p", "r", "y", "9")]
    assert [i.source for i in with_sources(one, "task:^[a-z]+")] == ["squad", ""]
    assert [i.source for i in with_sources(one, "id")] == ["x-1", "y"]
    assert [i.source for i in with_sources(one, "source")] == ["web", ""]
    assert [i.source for i in with_sources(one, "id:-(?=1)")] == ["-", ""]


def test_refuses_source_rules_that_cannot_be() -> None:
    one = [Instance("A", "p", "r", task="squad")]
    with pytest.raises(UnknownNameError, match="did you mean 'task'"):
        with_sources(one, "tasks:^a")
    with pytest.raises(DataError, match=r"'task:\(' has no valid regular expression"):
        with_sources(one, "task:(")
    with pytest.raises(DataError, match=r"in none of 1 instances \(the first has task 'squad'"):
        with_sources(one, "task:[0-9]+")


texts = st.sampled_from("abcdefgh")
many = st.lists(st.tuples(st.sampled_from("AB"), texts, texts), max_size=60).map(
    lambda drawn: (
        [Instance(*one) for one in drawn]
        + [Instance(f, f"own {f} {i}", "r") for f in "AB" for i in range(10)]
    )
)


@settings(max_examples=60)
@given(many, st.integers(1, 30), st.integers(0, 2**40), st.randoms(use_true_random=False))
def test_splits_by_content_and_keeps_twins_together(
    instances: list[Instance], evaluation: int, seed: int, chance: random.Random
) -> None:
    split = split_instances(instances, evaluation=evaluation, seed=seed)
    assert sorted(split.localisation + split.evaluation) == list(range(len(instances)))
    size = Counter(i.functionality for i in instances)
    held = Counter(instances[i].functionality for i in split.evaluation)
    assert all(1 <= held[f] <= min(evaluation, size[f] / 5) for f in size)
    said = [{(instances[i].prompt, instances[i].response) for i in side}
            for side in (split.localisation, split.evaluation)]  # fmt: skip
    assert not said[0] & said[1]
    other = chance.sample(instances, len(instances))
    again = split_instances(other, evaluation=evaluation, seed=seed)
    assert [instances[i] for i in split.evaluation] == [other[i] for i in again.evaluation]
    assert [instances[i] for i in split.localisation] == [other[i] for i in again.localisation]


def test_another_seed_is_another_split() -> None:
    probe = probe_instances()
    one, two = (set(split_instances(probe, evaluation=32, seed=s).evaluation) for s in (0, 1))
    assert len(one) == len(two) == 7 * 32
    assert len(one & two) < 90  # 45 are to be expected


def test_refuses_to_split_what_is_too_little() -> None:
    two = [Instance(f, str(i), "r") for f in "AB" for i in range(10)]
    with pytest.raises(DataError, match=r"the 10 instances have 1 \(A\)"):
        split_instances(two[:10], evaluation=2, seed=0)
    with pytest.raises(DataError, match="at least 10 instances, but 'B' has 9"):
        split_instances(two[:19], evaluation=2, seed=0)
    with pytest.raises(DataError, match="0 evaluation instances"):
        split_instances(two, evaluation=0, seed=0)
    same = [Instance("B", "always", "r")] * 20
    with pytest.raises(DataError, match="of the 20 instances of 'B' none can be evaluated on"):
        split_instances([*two[:10], *same], evaluation=2, seed=0)


def test_samples_the_same_whatever_the_order() -> None:
    probe = probe_instances()
    some = sample_instances(probe, 5, 3)
    assert Counter(i.functionality for i in some) == dict.fromkeys(
        {i.functionality for i in probe}, 5
    )
    assert some == [i for i in probe if i in some]
    assert {i.id for i in sample_instances(probe[::-1], 5, 3)} == {i.id for i in some}
    assert sample_instances(probe, 10**6, 3) == probe


def test_the_hash_is_of_what_the_labels_say_and_of_the_order() -> None:
    one, two = Instance("A", "p", "r"), Instance("A", "pr", "")
    assert content_hash([one, two]) == content_hash([Instance("A", "p", "r", "id", "t", "s"), two])
    others = ([two, one], [one], [Instance("A", "", "pr"), one], [Instance("Ap", "", "r"), two])
    assert len({content_hash([one, two]), *map(content_hash, others)}) == 5


@pytest.fixture(scope="module")
def reference() -> LoadedModel:
    return load_model(str(model_folder()), device="cpu")


@pytest.mark.parametrize("longest", [1024, 60])
def test_gives_the_ids_that_the_reference_model_was_trained_on(
    reference: LoadedModel, longest: int, caplog: pytest.LogCaptureFixture
) -> None:
    probe = [*probe_instances()[::7], Instance("Math", "so long " * 1500, "2")]
    ours = encode_instances(reference, probe, longest)
    assert not caplog.records  # about the long one
    expected = reference_tokenizer.encode_instances(reference.tokenizer, probe, longest)
    # The reference's own also leaves out those with room for a single token of response.
    kept = [e for e in ours.sequences if e and len(e.ids) - e.response_start > 1]
    assert kept == [e for e in expected if len(e.ids) - e.response_start > 1]
    assert ours.left_out == len(probe) - sum(e is not None for e in ours.sequences)


def test_prompts_are_those_of_running(reference: LoadedModel) -> None:
    probe = probe_instances()[:40]
    prompts = encode(reference, [i.prompt for i in probe])
    for prompt, one in zip(
        prompts, encode_instances(reference, probe, 1024).sequences, strict=True
    ):
        assert one is not None
        assert one.ids[: one.response_start] == prompt
        assert one.ids[-1] == reference.tokenizer.eos_token_id


def test_cuts_and_leaves_out(reference: LoadedModel) -> None:
    one = Instance("A", "a b c", "d e f g h i")
    whole = encode_instances(reference, [one], 1024).sequences[0]
    assert whole is not None
    size, start = len(whole.ids), whole.response_start
    for longest in range(1, size + 3):
        found = encode_instances(reference, [one], longest)
        assert found.cut == (start < longest < size)
        assert found.left_out == (longest <= start)
        expected = None if longest <= start else Encoded(whole.ids[:longest], start)
        assert found.sequences == [expected]
    assert encode_instances(reference, [], 10).sequences == []
    assert encode_instances(reference, [Instance("A", "", "r")], 10).sequences == [None]


@pytest.mark.parametrize(("count", "expected"), [(1000, 40), (150, 10), (30, 2), (10, 1)])
def test_the_default_share_of_evaluation_follows_the_smallest(count: int, expected: int) -> None:
    many = [Instance("Math", str(n), "x") for n in range(2000)]
    few = [Instance("Coding", str(n), "x") for n in range(count)]
    assert default_evaluation([*many, *few]) == expected
