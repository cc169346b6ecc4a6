"""Facts from files: every form, what is refused, and that ids are the facts' own."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from brickwork.errors import ConfigurationError, DataError
from brickwork.update.fact_files import read_facts
from brickwork.update.facts import Fact, Probe

OURS = {"subject": "Paris", "prompt": "Paris is the capital of", "target": "Spain"}
COUNTERFACT = {
    "case_id": 7,
    "pararel_idx": 2,
    "requested_rewrite": {
        "prompt": "{} is the capital of",
        "relation_id": "P36",
        "target_new": {"str": "Spain", "id": "Q29"},
        "target_true": {"str": "France", "id": "Q142"},
        "subject": "Paris",
    },
    "paraphrase_prompts": ["So it goes. Paris is the seat of"],
    "neighborhood_prompts": ["Lyon lies in", "Nice lies in"],
    "attribute_prompts": ["Madrid lies in"],
    "generation_prompts": ["Paris is"],
}
FLAT = {
    "case_id": 7, "relation_id": "P36", "subject": "Paris", "prompt": "{} is the capital of",
    "target_true": "France", "target_new": "Spain", "in_train": True,
    "paraphrase_prompts": ["So it goes. Paris is the seat of"],
    "neighborhood_prompts": ["Lyon lies in", "Nice lies in"],
}  # fmt: skip
EASYEDIT = {
    "case_id": 7, "prompt": "Paris is the capital of", "target_new": " Spain",
    "subject": "Paris", "ground_truth": "France", "rephrase_prompt": "Paris is the seat of",
    "locality_prompt": "Lyon lies in", "locality_ground_truth": "France",
}  # fmt: skip
ZSRE = {
    "subject": "Paris", "src": "What is Paris the capital of?", "pred": "", "alt": "Spain",
    "answers": ["France", "the Republic"], "rephrase": "Whose capital is Paris?",
    "loc": "nq question: who wrote it", "loc_ans": "nobody", "cond": "",
}  # fmt: skip
KNOWN = {
    "known_id": 3, "subject": "Paris", "attribute": "France", "template": "{} is the capital",
    "prediction": " France, and", "prompt": "Paris is the capital of", "relation_id": "P36",
}  # fmt: skip


def written(folder: Path, *records: Any) -> Path:
    path = folder / "facts.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records), "utf-8")
    return path


def read_one(folder: Path, record: Any, **options: Any) -> Fact:
    (fact,) = read_facts(written(folder, record), **options)
    return fact


def test_reads_our_own_fields(tmp_path: Path) -> None:
    full = {
        **OURS, "id": "a", "target_true": "France", "paraphrases": ["Paris is the seat of"],
        "neighbours": ["Lyon lies in", {"prompt": "Bonn lies in", "answer": "Germany"}],
        "same_subject": [{"prompt": "The river of Paris is"}], "generation": ["Paris"],
        "relation": "capital",
    }  # fmt: skip
    assert read_one(tmp_path, full) == Fact(
        "a", "Paris", "Paris is the capital of", "Spain", "France", ("Paris is the seat of",),
        (Probe("Lyon lies in"), Probe("Bonn lies in", "Germany")),
        (Probe("The river of Paris is"),), ("Paris",), "capital",
    )  # fmt: skip
    assert read_one(tmp_path, OURS) == Fact("1", "Paris", "Paris is the capital of", "Spain")


def test_reads_the_fields_of_data_sets_as_they_are(tmp_path: Path) -> None:
    counterfact = Fact(
        "7", "Paris", "Paris is the capital of", "Spain", "France",
        ("So it goes. Paris is the seat of",),
        (Probe("Lyon lies in", "France"), Probe("Nice lies in", "France")),
        generation=("Paris is",), relation="P36",
    )  # fmt: skip
    assert read_one(tmp_path, COUNTERFACT) == counterfact
    flat = read_one(tmp_path, FLAT)
    assert flat == Fact(**{**vars(counterfact), "generation": ()})
    assert read_one(tmp_path, EASYEDIT) == Fact(
        "7", "Paris", "Paris is the capital of", "Spain", "France", ("Paris is the seat of",),
        (Probe("Lyon lies in", "France"),),
    )  # fmt: skip
    both = {**EASYEDIT, "rephrase_prompt": ["a", "b"], "locality_prompt": ["c", "d"],
            "locality_ground_truth": ["C", "D"]}  # fmt: skip
    fact = read_one(tmp_path, both)
    assert fact.paraphrases == ("a", "b")
    assert fact.neighbours == (Probe("c", "C"), Probe("d", "D"))
    assert read_one(tmp_path, ZSRE) == Fact(
        "1", "Paris", "What is Paris the capital of?", "Spain", "France",
        ("Whose capital is Paris?",), (Probe("nq question: who wrote it", "nobody"),),
    )  # fmt: skip
    known = read_one(tmp_path, KNOWN)
    assert (known.id, known.target, known.target_true) == ("3", "France", "France")


def test_lists_lines_and_gzip_files_hold_the_same(tmp_path: Path) -> None:
    records = [OURS, COUNTERFACT, ZSRE]
    lines = written(tmp_path, *records)
    listed, packed = tmp_path / "facts.json", tmp_path / "facts.json.gz"
    listed.write_text("\ufeff\n" + json.dumps(records, indent=1), "utf-8")
    packed.write_bytes(gzip.compress(json.dumps(records).encode()))
    assert read_facts(lines) == read_facts(listed) == read_facts(packed)
    assert [fact.id for fact in read_facts(packed, most=2)] == ["1", "7"]


def test_every_fact_has_an_id_of_its_own(tmp_path: Path) -> None:
    ids = ["a", "a-2", "a", None, "a", 2]
    path = written(tmp_path, *({**OURS, "id": one} for one in ids))
    assert [fact.id for fact in read_facts(path)] == ["a", "a-2", "a-3", "4", "a-4", "2"]


def test_the_template_stands_around_every_prompt(tmp_path: Path) -> None:
    fact = read_one(tmp_path, COUNTERFACT, template="Complete {}:\n{prompt}")
    prompts = [fact.prompt, *fact.paraphrases, *fact.generation, fact.neighbours[1].prompt]
    assert all(prompt.startswith("Complete {}:\n") for prompt in prompts)
    assert fact.neighbours[1] == Probe("Complete {}:\nNice lies in", "France")
    with pytest.raises(ConfigurationError, match=r"has 0 places for the prompt; write \{prompt\}"):
        read_one(tmp_path, OURS, template="Complete: {}")


def test_an_empty_answer_of_a_data_set_is_left_to_the_screening(tmp_path: Path) -> None:
    assert read_one(tmp_path, {**ZSRE, "alt": ""}).target == ""


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, r"line 2: it has no subject \(its fields: none\)"),
        ({"subject": "a", "prompt": "a"}, r"line 2: it has no target \(its fields: prompt, subj"),
        ({**OURS, "target": " "}, "line 2: its target is empty"),
        ({**OURS, "prompt": 3}, "line 2: its prompt is 3, not text"),
        ({**OURS, "paraphrase": []}, "line 2: no field of a fact .* did you mean 'paraphrases'"),
        ({**OURS, "paraphrases": 1}, "its paraphrases is 1, no text and no list of texts"),
        ({**OURS, "paraphrases": [1]}, "its paraphrases is 1, not text"),
        ({**OURS, "neighbours": [{"prompt": "a"}, 3]}, "its neighbours has 3, no text and no obj"),
        ({**OURS, "neighbours": [{"answer": "a"}]}, "it has no prompt"),
        ({**OURS, "neighbours": [{"promt": "a"}]}, "did you mean 'prompt'"),
        ({**OURS, "target": "\ud800"}, "its target holds half of a surrogate pair"),
        ({**OURS, "target_new": "a"}, "it has fields of two forms: target_new beside target"),
        ({"requested_rewrite": 1}, "requested_rewrite.subject was looked for in 1"),
        ({"requested_rewrite": {"subject": "a", "prompt": "{}"}}, "no requested_rewrite.targe"),
        ({k: v for k, v in ZSRE.items() if k != "subject"}, "it has no subject"),
    ],
)  # fmt: skip
def test_names_every_record_that_is_no_fact(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as failure:
        read_facts(written(tmp_path, OURS, record, OURS, {"subject": "a"}))
    assert "2 of 4 records" in str(failure.value)
    assert "line 4: it has no prompt" in str(failure.value)


def test_refuses_files_that_hold_no_facts(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text("[]")
    with pytest.raises(DataError, match="holds none; write at least one"):
        read_facts(path)
    path.write_text('[{"subject": "a"')
    with pytest.raises(DataError, match=r"begins like a list, but is no JSON"):
        read_facts(path)
    path.write_text("[1]")
    with pytest.raises(DataError, match="record 1 holds '1', which is no JSON object"):
        read_facts(path)
    with pytest.raises(DataError, match=r"records could not be read from .*No such file"):
        read_facts(tmp_path / "none.jsonl")


def test_a_list_that_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([OURS] * 9))
    monkeypatch.setattr("brickwork.measure.records.LONGEST_LIST", 100)
    with pytest.raises(DataError, match="longer than 100 bytes; write one JSON"):
        read_facts(path)
