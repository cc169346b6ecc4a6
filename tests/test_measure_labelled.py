"""Data sets as labelled instances: mappings, what they skip, and what is refused."""

import builtins
import json
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from brickwork.brick.spec import FUNCTIONALITIES
from brickwork.errors import DataError, MissingExtraError, UnknownNameError
from brickwork.measure.instances import Instance
from brickwork.measure.labelled import SURPLUS, load_labelled
from brickwork.measure.mapping import (
    AMBIGUOUS,
    FILTERED,
    INCOMPLETE,
    UNLABELLED,
    Mapping,
    read_mapping,
    shipped_mappings,
)

ABILITIES = [
    ("programming ability", "Coding"),
    ("mathematical reasoning", "Math"),
    ("syntactic understanding", "Linguistic"),
    ("legal knowledge", "Knowledge"),
    ("translation ability", "Translation"),
    ("ethics and morality", "Ethics"),
    ("creative writing", "Writing"),
]
FLAT = {
    "prompt": "q", "response": "a", "labels": ["kind"],
    "functionalities": {"Math": ["sum*"], "Coding": ["code"]},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def infinity(number: int, abilities: list[str], **other: Any) -> dict[str, Any]:
    """A record as BAAI/Infinity-Instruct has it."""
    return {
        "id": number,
        "conversations": [
            {"from": "human", "value": f"question {number}"},
            {"from": "gpt", "value": f"answer {number}"},
            {"from": "human", "value": "and now?"},
        ],
        "label": {
            "ability_en": abilities,
            "ability_zh": [],
            "cate_ability_en": ["programming and software development", "stem knowledge"],
            "cate_ability_zh": [],
        },
        "langdetect": "en",
        "source": "Subjective",
        "reward": 0.5,
        **other,
    }


def records(count: int) -> list[dict[str, Any]]:
    return [
        infinity(number, ["logical reasoning", ABILITIES[number % 7][0]])
        for number in range(7 * count)
    ]


def parquet(folder: Path, rows: list[dict[str, Any]], files: int = 2) -> Path:
    folder.mkdir()
    for file in range(files):
        name = folder / f"train-{file:05d}-of-{files:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows[file::files]), name)
    return folder


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def written(path: Path, mapping: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(mapping))
    return path


def test_takes_infinity_instruct_from_parquet_and_from_jsonl(tmp_path: Path) -> None:
    rows = records(3)
    folders = parquet(tmp_path / "p", rows), jsonl(tmp_path / "j" / "x.jsonl", rows)
    expected = {
        Instance(ABILITIES[i % 7][1], f"question {i}", f"answer {i}", str(i), "", "Subjective")
        for i in range(21)
    }
    for data in (folders[0], folders[1].parent, folders[1]):
        found = load_labelled(str(data), mapping="infinity-instruct")
        assert (set(found.instances), len(found.instances)) == (expected, 21)
        assert (found.records, found.skipped) == (21, {})
    assert {name for _, name in ABILITIES} == set(FUNCTIONALITIES)


def test_draws_by_seed_and_stops_when_there_are_enough(tmp_path: Path) -> None:
    folder = str(parquet(tmp_path / "p", records(60)))
    drawn = [
        load_labelled(folder, mapping="infinity-instruct", per_function=4, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert Counter(i.functionality for i in drawn[0].instances) == dict.fromkeys(FUNCTIONALITIES, 4)
    assert drawn[0] == drawn[1]
    assert set(drawn[0].instances) != set(drawn[2].instances)
    assert drawn[0].records < 420
    assert drawn[0].records == 28 + drawn[0].skipped[SURPLUS]
    assert load_labelled(folder, mapping="infinity-instruct", most=5).records == 5


def test_reads_the_configuration_that_a_copy_of_the_hub_has(tmp_path: Path) -> None:
    parquet(tmp_path / "all", records(1), files=1)
    for name in ("0625", "Gen"):
        parquet(tmp_path / "all" / name, [infinity(1, [name, "programming ability"])], files=1)
    card = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{name}/*"}]}
        for name in ("Gen", "0625")
    ]
    (tmp_path / "all" / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': card})}---\n")
    mapping = read_mapping("infinity-instruct").model_dump(mode="json")
    mapping |= {"functionalities": {"Gen": ["Gen"], "0625": ["0625"]}}
    path = written(tmp_path / "m.yaml", mapping)
    assert load_labelled(str(tmp_path / "all"), mapping=path).instances[0].functionality == "0625"


def test_counts_what_it_skips(tmp_path: Path) -> None:
    rows = [
        infinity(0, ["programming ability", "mathematical reasoning"]),
        infinity(1, ["logical reasoning"]),
        infinity(2, []),
        infinity(3, ["programming ability"], label=None),
        infinity(4, ["programming ability"], conversations=[{"from": "gpt", "value": "hi"}]),
        infinity(5, ["programming ability"], conversations=None),
        infinity(6, ["Programming Ability "]),
    ]
    found = load_labelled(str(jsonl(tmp_path / "x.jsonl", rows)), mapping="infinity-instruct")
    assert [i.id for i in found.instances] == ["6"]
    assert found.skipped == {AMBIGUOUS: 1, UNLABELLED: 3, INCOMPLETE: 2}
    assert found.records == 7


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r")], ("q", "a")),
        ([("Human", "q"), ("GPT", "")], ("q", "")),
        ([("user", "q"), ("user", "r"), ("assistant", "a")], None),
        ([("user", " "), ("assistant", "a")], None),
        ([("user", "q")], None),
        ([], None),
    ],
)
def test_takes_the_first_exchange(
    messages: list[tuple[str, str]], expected: tuple[str, str] | None
) -> None:
    mapping = Mapping(conversation="m", labels=("l",), functionalities={"A": ("a",), "B": ("b",)})
    for role, content in (("role", "content"), ("from", "value")):
        record = {"m": [{role: who, content: text} for who, text in messages], "l": "A"}
        found = mapping.instance(record, "here")
        wanted = Instance("A", *expected) if expected else INCOMPLETE
        assert found == wanted


def test_reads_flat_fields_nested_labels_and_where(tmp_path: Path) -> None:
    mapping = FLAT | {
        "labels": ["meta.kinds", "a.b"], "where": {"lang": ["EN", "fr"]}, "task": "meta.task",
    }  # fmt: skip
    rows = [
        {"q": "1", "a": "x", "lang": "en", "meta": {"kinds": [["sums"], None], "task": "t"}},
        {"q": "2", "a": "x", "lang": "fr", "a.b": "Code", "meta": None},
        {"q": "3", "a": "x", "lang": "de", "a.b": "code"},
        {"q": "4", "a": "x", "a.b": "code"},
        {"q": "5", "a": "x", "lang": "en", "a.b": "no code"},
    ]
    data = jsonl(tmp_path / "x.jsonl", rows)
    found = load_labelled(str(data), mapping=written(tmp_path / "m.yaml", mapping))
    assert found.instances == [Instance("Math", "1", "x", task="t"), Instance("Coding", "2", "x")]
    assert found.skipped == {FILTERED: 2, UNLABELLED: 1}


def test_without_a_mapping_records_are_instances(tmp_path: Path) -> None:
    rows = [{"functionality": f, "prompt": f"{f} {i}", "response": "r"} for f in "AB" for i in
            range(9)]  # fmt: skip
    file, folder = jsonl(tmp_path / "x.jsonl", rows), parquet(tmp_path / "p", rows)
    every = {Instance(f, f"{f} {i}", "r") for f in "AB" for i in range(9)}
    assert set(load_labelled(str(file)).instances) == every
    assert set(load_labelled(str(folder)).instances) == every
    for data in (file, folder):
        some = load_labelled(str(data), per_function=2)
        assert Counter(i.functionality for i in some.instances) == {"A": 2, "B": 2}
        assert some.skipped == {SURPLUS: 14}
    with pytest.raises(DataError, match=r"record 1 .seed 0. has no functionality .its fields: q"):
        load_labelled(str(parquet(tmp_path / "bad", [{"q": "1"}], files=1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"propmt": "q"}, "propmt"),
        ({"response": None}, "name either prompt and response, or conversation"),
        ({"conversation": "m"}, "name either prompt and response, or conversation"),
        ({"config": 405}, "config"),
        ({"labels": []}, "labels"),
        ({"functionalities": {"A": ["a"]}}, "functionalities"),
        ({"functionalities": {"A": ["a"], "B": "b"}}, r"functionalities.B"),
    ],
)
def test_refuses_mappings_that_are_none(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=rf"m.yaml is no valid mapping: .*{message}"):
        read_mapping(written(tmp_path / "m.yaml", FLAT | change))


def test_names_every_mistake_and_the_nearest_mapping(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        textwrap.dedent("""
        prompt: q
        labels: kind
        extra: 1
    """)
    )
    with pytest.raises(DataError, match=r"(?s)extra.*functionalities|functionalities.*extra"):
        read_mapping(path)
    path.write_text("a: [")
    with pytest.raises(DataError, match="no valid mapping"):
        read_mapping(path)
    with pytest.raises(UnknownNameError, match="did you mean 'infinity-instruct'"):
        read_mapping("infinity_instruct")


@pytest.mark.parametrize("name", shipped_mappings())
def test_shipped_mappings_are_valid_and_name_our_functionalities(name: str) -> None:
    assert set(read_mapping(name).functionalities) == set(FUNCTIONALITIES)


def test_says_why_nothing_was_found(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "x.jsonl", [infinity(1, ["other"]), infinity(2, ["other"])])
    with pytest.raises(DataError, match=r"none of 2 records .*no functionality: 2.*'ability_en'"):
        load_labelled(str(data), mapping="infinity-instruct")
    with pytest.raises(DataError, match="which has no record; write one JSON object"):
        load_labelled(str(jsonl(tmp_path / "empty.jsonl", [])))


def test_refuses_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.jsonl'.*No such file"):
        load_labelled("gone.jsonl")
    with pytest.raises(DataError, match=r"'org/none' could not be read: .*you can reach"):
        load_labelled("org/none")
    with pytest.raises(DataError, match="no data set on the Hub, so it has no revision 'main'"):
        load_labelled(str(tmp_path), revision="main")
    mapping = written(tmp_path / "m.yaml", FLAT | {"split": "dev"})
    folder = parquet(tmp_path / "p", [{"q": "1", "a": "2", "kind": "code"}], files=1)
    with pytest.raises(DataError, match=r"could not be read: .*dev"):
        load_labelled(str(folder), mapping=mapping)


def test_never_runs_code_nor_reads_other_formats(tmp_path: Path) -> None:
    script = tmp_path / f"{tmp_path.name}.py"
    script.write_text("raise SystemExit('code ran')")
    with pytest.raises(DataError, match="scripts are no longer supported"):
        load_labelled(str(tmp_path))
    script.unlink()
    (tmp_path / "x.txt").write_text("a\n")
    with pytest.raises(DataError, match="only parquet, json, csv, arrow files are read here"):
        load_labelled(str(tmp_path))
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "x.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(DataError, match="could not be read"):
        load_labelled(str(tmp_path / "pickles"))


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"'brickwork\[data\]'"):
        load_labelled(str(tmp_path))
