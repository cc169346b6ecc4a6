"""Configuration: one document, one hash, and messages that name the field."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from brickwork.brick.configuration import (
    BrickUse,
    Configuration,
    parse_configuration,
    parse_uses,
    read_configuration,
)
from brickwork.errors import ConfigurationError

names = st.from_regex(r"[a-z0-9]{1,5}([-_.][a-z0-9]{1,5}){0,2}(@[1-9][0-9]?)?", fullmatch=True)
hashes = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
weights = st.floats(-1e6, 1e6)
uses = st.builds(BrickUse, name=names | hashes, weight=weights)
documents = st.builds(
    dict,
    base=st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=9),
    bricks=st.lists(st.fixed_dictionaries({"name": names | hashes, "weight": weights}), max_size=3),
    options=st.fixed_dictionaries(
        {},
        optional={
            "max_new_tokens": st.integers(1, 1_000_000), "temperature": st.floats(0, 100),
            "top_p": st.floats(0.001, 1), "seed": st.integers(0, 2**63 - 1),
        },
    ),
)  # fmt: skip


def reversed_fields(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: reversed_fields(value) for key, value in reversed(document.items())}
    return [reversed_fields(v) for v in document] if isinstance(document, list) else document


@given(documents)
def test_yaml_json_and_the_order_of_fields_make_no_difference(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "a.yaml").write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    (folder / "a.yml").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    (folder / "a.json").write_text(json.dumps(reversed_fields(document)), encoding="utf-8")
    found = [read_configuration(folder / name) for name in ("a.yaml", "a.yml", "a.json")]
    expected = parse_configuration(document)
    assert found == [expected] * 3
    assert {one.hash for one in found} == {expected.hash}
    assert expected.diff(found[0]) == []


@given(documents)
def test_what_is_written_reads_back_with_the_same_hash(document: dict[str, Any]) -> None:
    one = parse_configuration(document)
    again = parse_configuration(json.loads(one.model_dump_json()))
    assert (again, again.hash) == (one, one.hash)


@given(documents, documents)
def test_equal_hash_equal_document_and_no_difference_are_one(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    one, two = parse_configuration(first), parse_configuration(second)
    assert (one == two) == (one.hash == two.hash) == (one.diff(two) == [])
    assert len(one.diff(two)) == len(two.diff(one))


def test_the_hash_stays_the_same_from_version_to_version() -> None:
    whole = {"base": "org/model", "bricks": [{"name": "fr-en@2", "weight": 0.5}]}
    assert Configuration().hash == (
        "e1206e38cf72d464a41832b6a28039d2896ab03f4c36255a7dfc2362bb4a848c"
    )
    assert parse_configuration(whole).hash == (
        "a79e9a534b20afb03ed2aaae98afc303e651a3cf737eb18a046060b7fc58fff9"
    )


def test_a_default_that_is_written_out_changes_nothing() -> None:
    short, long = Configuration(), Configuration(base="reference", bricks=())
    options = {"max_new_tokens": 64, "temperature": 0, "top_p": 1, "seed": 0}
    assert parse_configuration({"options": options}).hash == short.hash == long.hash


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"bricks": [{"name": "a", "weight": 0.0}]}, {"bricks": [{"name": "a", "weight": -0.0}]}),
        ({"bricks": [{"name": "a"}]}, {"bricks": [{"name": "a", "weight": 1}]}),
        ({"options": {"temperature": -0.0}}, {}),
    ],
)
def test_equal_numbers_give_equal_hashes(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert parse_configuration(first).hash == parse_configuration(second).hash


def test_the_order_of_bricks_matters() -> None:
    two = [BrickUse(name="a"), BrickUse(name="b")]
    assert Configuration(bricks=(*two,)).hash != Configuration(bricks=(*reversed(two),)).hash


def test_a_difference_is_told_by_field() -> None:
    one = Configuration(bricks=(BrickUse(name="a", weight=0.5),))
    two = Configuration(base="other", bricks=(BrickUse(name="a"), BrickUse(name="b")))
    assert one.diff(two) == [
        "base: reference -> other",
        "bricks.0.weight: 0.5 -> 1.0",
        "bricks.1.name: (absent) -> b",
        "bricks.1.weight: (absent) -> 1.0",
    ]


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({"colour": 1}, "colour: Extra inputs are not permitted"),
        ({"base": ""}, "base: String should have at least 1 character"),
        ({"base": None}, "base: Input should be a valid string, not None"),
        ({"bricks": "fr-en"}, "bricks: Input should be a valid tuple, not 'fr-en'"),
        ({"bricks": ["fr-en"]}, "bricks.0: Input should be a valid dictionary"),
        ({"bricks": [{"weight": 1}]}, "bricks.0.name: Field required"),
        (
            {"bricks": [{"name": "a", "weight": "x"}]},
            "bricks.0.weight: Input should be a valid num",
        ),
        ({"bricks": [{"name": "a", "weight": None}]}, "bricks.0.weight: Input should be a valid"),
        ({"bricks": [{"name": "a"}, {"name": "b", "weight": float("nan")}]}, "bricks.1.weight: "),
        (
            {"bricks": [{"name": "a", "weight": float("-inf")}]},
            "bricks.0.weight: Input should be a",
        ),
        ({"bricks": [{"name": "a", "wieght": 1}]}, "bricks.0.wieght: Extra inputs"),
        ({"bricks": [{"name": "../a"}]}, "bricks.0.name: String should match pattern"),
        ({"bricks": [{"name": "a@0"}]}, "bricks.0.name: String should match pattern"),
        ({"bricks": [{"name": "a@1234567890"}]}, "bricks.0.name: String should match pattern"),
        ({"bricks": [{"name": "sha256:abc"}]}, "bricks.0.name: String should match pattern"),
        ({"bricks": [{"name": "a\n"}]}, "bricks.0.name: String should match pattern"),
        ({"options": {"max_new_tokens": 0}}, "options.max_new_tokens: Input should be greater"),
        (
            {"options": {"max_new_tokens": 1.5}},
            "options.max_new_tokens: Input should be a valid int",
        ),
        ({"options": {"temperature": -0.1}}, "options.temperature: Input should be greater than"),
        ({"options": {"temperature": float("nan")}}, "options.temperature: Input should be a fin"),
        ({"options": {"top_p": 0}}, "options.top_p: Input should be greater than 0"),
        ({"options": {"top_p": 1.1}}, "options.top_p: Input should be less than or equal to 1"),
        ({"options": {"seed": -1}}, "options.seed: Input should be greater than or equal to 0"),
        ({"options": {"seed": 2**63}}, "options.seed: Input should be less than"),
        ([], "document: Input should be a valid dictionary"),
        (None, "document: Input should be a valid dictionary"),
    ],
)
def test_the_complaint_names_the_field(document: Any, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        parse_configuration(document, "run.yaml")
    assert str(refusal.value).startswith("run.yaml is not valid: ")
    assert complaint in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"{"), ("a.json", b"\xff\xfe\x00"), ("a.json", b"[" * 100_000),
        ("a.yaml", b"{"), ("a.yaml", b"a: b: c"), ("a.yaml", b"\xff\xff"), ("a.yaml", b"[" * 1500),
        ("a.yaml", b"!!python/object/apply:os.system ['exit 1']"), ("a.yaml", b"\x00"),
        ("a.yaml", b"- &a [*a]"), ("a.yaml", b"? {a: 1}\n: 2"), ("a.yaml", b""), ("a.json", b"1"),
        ("a.yaml", b"base: x\n---\nbase: y"), ("a.yaml", b"1: 2"), ("a.yaml", b"base: 2020-01-01"),
    ],
)  # fmt: skip
def test_refuses_a_file_that_holds_no_configuration(
    name: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=name):
        read_configuration(tmp_path / name)


@pytest.mark.parametrize("name", ["missing.yaml", "", "a\x00.yaml"])
def test_refuses_a_file_that_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_configuration(tmp_path / name)


def test_references_of_yaml_that_multiply_are_refused_quickly(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigurationError, match="a0: Extra inputs are not permitted"):
        read_configuration(tmp_path / "a.yaml")


@given(st.lists(uses, max_size=4))
def test_uses_read_back_from_a_command_line(given_uses: list[BrickUse]) -> None:
    text = ",".join(f"{use.name}:{use.weight!r}" for use in given_uses)
    assert parse_uses(text) == tuple(given_uses)
    assert parse_uses(f" {text} , ".replace(",", " , ")) == tuple(given_uses)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" , ", []),
        ("fr-en", [("fr-en", 1.0)]),
        ("fr-en@2", [("fr-en@2", 1.0)]),
        ("a:0.5,b:-1,c:2e-3", [("a", 0.5), ("b", -1.0), ("c", 0.002)]),
        (f"sha256:{'0' * 64}", [(f"sha256:{'0' * 64}", 1.0)]),
        (f"sha256:{'0' * 64}:0.5", [(f"sha256:{'0' * 64}", 0.5)]),
        ("llama3.1", [("llama3.1", 1.0)]),
    ],
)
def test_uses_are_names_with_or_without_weights(
    text: str, expected: list[tuple[str, float]]
) -> None:
    assert [(use.name, use.weight) for use in parse_uses(text)] == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a:", "'a:' is no brick: weight: Input should be a valid number"),
        ("a:x", "'a:x' is no brick: weight: Input should be a valid number"),
        ("a:nan", "'a:nan' is no brick: weight: Input should be a finite number"),
        ("a:1:2", "'a:1:2' is not NAME or NAME:WEIGHT"),
        (":1", "':1' is not NAME or NAME:WEIGHT"),
        ("A", "'A' is no brick: name: String should match pattern"),
        ("a b", "'a b' is no brick: name: String should match pattern"),
        ("../a", "'../a' is no brick: name: String should match pattern"),
        ("a@x", "'a@x' is no brick: name: String should match pattern"),
        ("sha256:12", "'sha256:12' is no brick: name: String should match pattern"),
        ("b,a;c", "'a;c' is no brick: name: String should match pattern"),
    ],
)
def test_refuses_what_is_no_use(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        parse_uses(text)
    assert complaint in str(refusal.value)
