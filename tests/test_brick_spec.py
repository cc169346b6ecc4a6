"""BrickSpec: names and sites are safe as paths, and every error names its field."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brickwork.brick.spec import BrickSpec, parse_spec
from brickwork.errors import BrickFormatError

GOOD: dict[str, Any] = {
    "name": "fr-en",
    "form": "lora",
    "base": {"architecture": "a", "shapes": "s", "weights": "w"},
    "sites": ["model.layers.0.self_attn.q_proj"],
}
words = st.text(st.characters(codec="utf-8"), max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**12), 10**12)
leaves = st.none() | st.booleans() | numbers | words
json_values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3)
)


@given(st.dictionaries(words, json_values, max_size=4), words, st.lists(words, max_size=3))
def test_reads_back_what_it_writes(
    options: dict[str, Any], text: str, exemplars: list[str]
) -> None:
    function = {"text": text, "exemplars": exemplars}
    spec = parse_spec({**GOOD, "options": options, "peft": options, "function": function}, "here")
    written = json.dumps(spec.model_dump(mode="json"))
    assert parse_spec(json.loads(written), "here") == spec


@pytest.mark.parametrize("name", ["a", "7", "fr-en", "llama3.1_8b", "a" * 80, "a--b", "x-1.2"])
def test_accepts_plain_names(name: str) -> None:
    assert parse_spec({**GOOD, "name": name}, "here").name == name


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "a..b", "a/b", "/a", "a\\b", "../a", "a/../b", "a\n", "\na", "a b", "A",
        "-a", "a-", ".a", "a.", "é", "\uff41", "a\x00", "a" * 81, "a@1", "a:b", "a,b", "~", "con*",
    ],
)  # fmt: skip
def test_refuses_names_that_are_not_one_plain_word(name: str) -> None:
    with pytest.raises(BrickFormatError, match="here does not describe a brick: name:"):
        parse_spec({**GOOD, "name": name}, "here")


@pytest.mark.parametrize("site", ["", "a/b", "a..b", ".a", "a.", "a b", "a\n", "a[0]", "a*", "é"])
def test_refuses_sites_that_are_no_module_paths(site: str) -> None:
    with pytest.raises(BrickFormatError, match=r"sites\.1:"):
        parse_spec({**GOOD, "sites": ["a.b-c.0", site]}, "here")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"colour": 1}, "colour: Extra inputs are not permitted"),
        ({"form": 3}, "form: Input should be a valid string, not 3"),
        ({"origin": "found"}, "origin: Input should be 'emergent' or 'customized', not 'found'"),
        ({"granularity": "atom"}, "granularity: Input should be 'neuron'"),
        ({"base": {"architecture": "a"}}, "base.shapes: Field required; base.weights: Field"),
        ({"base": {**GOOD["base"], "size": 3}}, "base.size: Extra inputs"),
        ({"sites": "x"}, "sites: Input should be a valid tuple, not 'x'"),
        ({"metrics": [{"name": "loss"}]}, "metrics.0.after: Field required"),
        (
            {"metrics": [{"name": "loss", "after": float("nan")}]},
            "metrics.0.after: Input should be",
        ),
        ({"metrics": [{"name": "loss", "after": 10**400}]}, "metrics.0.after: Input should be"),
        ({"options": {"x": float("nan")}}, "document: Value error, it cannot be written as JSON"),
        ({"peft": {"r": float("inf")}}, "document: Value error, it cannot be written as JSON"),
        ({"licence": "\ud800"}, "document: Value error, it cannot be written as JSON"),
        ({"options": {"\udfff": 1}}, "document: Value error, it cannot be written as JSON"),
        ({"options": {"x": 10**5000}}, "document: Value error, it cannot be written as JSON"),
        ({"options": {"x": object()}}, "options.x"),
    ],
)
def test_the_complaint_names_the_field(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BrickFormatError) as refusal:
        parse_spec({**GOOD, **change}, "here")
    assert complaint in str(refusal.value)


@pytest.mark.parametrize("document", [None, [], "x", 3, [GOOD]])
def test_refuses_what_is_no_object(document: object) -> None:
    with pytest.raises(BrickFormatError, match="here does not describe a brick: document"):
        parse_spec(document, "here")


def test_many_complaints_make_a_short_message() -> None:
    with pytest.raises(BrickFormatError, match="and 88 more") as refusal:
        parse_spec({**GOOD, **{f"field{i}": 1 for i in range(100)}}, "here")
    assert len(str(refusal.value)) < 2000


def test_refuses_endless_nesting() -> None:
    nested: Any = 1
    for _ in range(400):
        nested = {"a": [nested]}
    with pytest.raises(BrickFormatError) as refusal:
        parse_spec({**GOOD, "options": nested}, "here")
    assert len(str(refusal.value)) < 2000


def test_equal_numbers_give_equal_documents() -> None:
    zeros = [
        BrickSpec(**GOOD, metrics=({"name": "loss", "after": zero},)).model_dump_json()
        for zero in (0.0, -0.0, 0)
    ]
    assert len(set(zeros)) == 1
