"""Recipes: mergekit's forms are read as they are, and everything else is refused by name."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brickwork.combine.method import Parameter
from brickwork.combine.parameters import evaluate, parse_setting, resolve
from brickwork.combine.plan import ModelRef
from brickwork.combine.recipe import (
    ModelToken,
    TokenizerChoice,
    ZeroToken,
    parse_recipe,
    read_recipe,
    recipe_notes,
)
from brickwork.combine.reference import parse_reference
from brickwork.errors import ConfigurationError

LINEAR: dict[str, Any] = {
    "merge_method": "linear",
    "models": [{"model": "a", "parameters": {"weight": 1}}, {"model": "b"}],
    "parameters": {"weight": 0.5},
}
NUMBER = Parameter("weight", "operand", "number", None, "")
SWITCH = Parameter("normalize", "shared", "switch", True, "")
finite = st.floats(-1e6, 1e6)


def refused(document: Any, *reasons: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_recipe(document)
    for reason in reasons:
        assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("org/base", ModelRef("org/base")),
        ("org/base@v2", ModelRef("org/base", "v2")),
        ("org/base+org/lora", ModelRef("org/base", None, "org/lora")),
        ("base@r1+lora@r2", ModelRef("base", "r1", "lora", "r2")),
        ({"model": "base"}, ModelRef("base")),
        ({"model": {"path": "base", "revision": "v"}}, ModelRef("base", "v")),
        (
            {"model": {"path": "base"}, "lora": {"path": "lora", "revision": "v"}},
            ModelRef("base", None, "lora", "v"),
        ),
    ],
)
def test_models_are_named_as_for_mergekit(written: Any, read: ModelRef) -> None:
    assert parse_reference(written) == read


def test_a_model_is_written_as_it_was_read() -> None:
    for text in ("org/base", "a@b", "a+b", "a@b+c@d"):
        assert str(parse_reference(text)) == text


def test_a_folder_is_a_folder_whatever_its_name(tmp_path: Path) -> None:
    for name in ("a@b", "a+b", "v1@2+3"):
        folder = tmp_path / name
        folder.mkdir()
        assert parse_reference(str(folder)) == ModelRef(str(folder))
        assert parse_reference(f"{folder}+lora") == ModelRef(str(folder), None, "lora")


@pytest.mark.parametrize(
    "written",
    ["", "a@b@c", "a+b+c", "@v", "a+", 7, None, {"lora": "b"}, {"model": "a", "lroa": "b"},
     {"model": {"path": 3}}],
)  # fmt: skip
def test_a_model_that_is_none_is_refused(written: Any) -> None:
    with pytest.raises(ValueError, match=r"model|revision|texts"):
        parse_reference(written)


def test_every_key_of_mergekit_is_read() -> None:
    recipe = parse_recipe(
        {
            "merge_method": "ties",
            "slices": [
                {
                    "sources": [{"model": "a", "layer_range": [0, 2], "parameters": None}],
                    "base_model": "a",
                    "residual_weight": 0.5,
                    "parameters": {"weight": 1},
                }
            ],
            "base_model": "a",
            "dtype": "torch.bfloat16",
            "out_dtype": "float32",
            "tokenizer": {
                "source": "base",
                "tokens": {
                    "<a>": {"source": "b@v", "force": True},
                    "<b>": {"source": {"kind": "zero"}},
                    "<c>": {"source": {"kind": "model_token", "model": "b", "token_id": 3}},
                },
                "pad_to_multiple_of": 8,
            },
            "chat_template": "auto",
            "parameters": {"density": {"value": [0.1, 1], "filter": "mlp"}},
        }
    )
    assert recipe.dtype == "bfloat16"
    assert recipe.vocabulary is recipe.tokenizer is not None
    tokens = recipe.tokenizer.tokens or {}
    assert tokens["<a>"].source == ModelRef("b", "v")
    assert isinstance(tokens["<b>"].source, ZeroToken)
    assert isinstance(tokens["<c>"].source, ModelToken)
    assert "residual_weight has no effect" in " ".join(recipe_notes(recipe))


def test_the_short_tokenizer_key_is_the_long_one() -> None:
    recipe = parse_recipe(LINEAR | {"tokenizer_source": "union"})
    assert recipe.vocabulary == TokenizerChoice(source="union")
    named = parse_recipe(LINEAR | {"tokenizer_source": "b@v"}).vocabulary
    assert named is not None
    assert named.source == ModelRef("b", "v")


def test_the_base_comes_first_and_the_others_in_order() -> None:
    recipe = parse_recipe(LINEAR | {"base_model": "z"})
    assert recipe.refs() == (ModelRef("z"), ModelRef("a"), ModelRef("b"))


def test_all_complaints_come_at_once_with_paths_and_nearest_names() -> None:
    refused(
        {
            "merge_method": "linear",
            "modles": [],
            "slices": [{"sources": [{"model": "a", "layer_rang": [0, 1]}], "paramters": {}}],
            "dtype": "bf16",
            "tokenizer": {"tokens": {"<a>": {"source": {"kind": "zero", "modle": "a"}}}},
        },
        "modles: there is no such key; did you mean",
        "slices.0.sources.0.layer_rang: there is no such key; did you mean layer_range?",
        "slices.0.sources.0.layer_range: Field required",
        "slices.0.paramters: there is no such key; did you mean parameters?",
        "dtype: must be one of bfloat16, float16, float32, float64, not 'bf16'",
        "tokenizer.tokens.<a>.source.zero.modle: there is no such key",
    )


def test_a_parameter_that_no_method_has_is_refused() -> None:
    document = LINEAR | {"merge_method": "ties", "parameters": {"densty": 1, "normalise": True}}
    refused(
        document,
        "parameters.densty: ties has no such parameter; did you mean density?",
        "parameters.normalise: ties has no such parameter; did you mean normalize",
    )


def test_a_parameter_of_another_method_is_noted() -> None:
    recipe = parse_recipe(LINEAR | {"parameters": {"weight": 1, "density": 0.5, "int8_mask": True}})
    notes = recipe_notes(recipe)
    assert len(notes) == 2
    assert notes[0].startswith("linear has no parameter 'density', so its settings have no effect")


def test_values_of_another_kind_are_refused_where_they_are_written() -> None:
    document = LINEAR | {"parameters": {"weight": [1, "much"], "normalize": 3, "t": 1}}
    refused(
        document,
        "parameters.weight: weight is a number, not 'much'",
        "parameters.normalize: normalize is a switch, not 3",
    )
    refused(LINEAR | {"parameters": {"weight": float("nan")}}, "weight is a number, not nan")


@pytest.mark.parametrize(
    "setting",
    [[], [[1]], {"filter": "a"}, [{"value": 1, "fliter": "a"}], [{"value": 1}, 2], None,
     {"value": 1, "filter": 3}],
)  # fmt: skip
def test_a_setting_of_another_form_is_refused(setting: Any) -> None:
    refused(LINEAR | {"parameters": {"weight": setting}}, "parameters.weight:")


def test_an_unknown_method_is_refused_with_the_nearest() -> None:
    refused(LINEAR | {"merge_method": "tiess"}, "did you mean ties")


def test_exactly_one_form_of_inputs_is_wanted() -> None:
    refused({"merge_method": "linear"}, "exactly one of models, slices and modules")
    both = {"slices": [{"sources": [{"model": "a", "layer_range": [0, 1]}]}]}
    refused(LINEAR | both, "not models and slices")
    refused(LINEAR | {"tokenizer": {}, "tokenizer_source": "base"}, "either tokenizer_source or")
    refused({"merge_method": "linear", "modules": {"default": {}}}, "either slices or models")


@pytest.mark.parametrize(
    ("key", "kind"), [("experts", "mixture"), ("bricks", "bricks"), ("genome", "search")]
)
def test_recipes_of_other_kinds_are_told_apart(key: str, kind: str) -> None:
    refused({key: []}, kind)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\n---\nb: 2\n", "2 documents"),
        ("merge_method: linear\nmerge_method: ties\n", "'merge_method' twice, in lines 1 and 2"),
        ("models:\n- {model: a, model: b}\n", "'model' twice"),
        ("a: [1, 2\n", "no YAML"),
        ("a: !!python/object:os.system {}\n", "no YAML"),
        ("a: &a [*a]\n", "inside itself"),
        ("- 1\n", "a list"),
        ("", "empty"),
        ("a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
            f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
            for old, new in zip("abcde", "bcdef", strict=True)
        ), "without aliases"),
        ("a: " + "[" * 100_000, "brackets"),
        ("- " * 2000 + "a", "no YAML"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_plain_document_is_refused(
    text: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=reason):
        read_recipe(path)


def test_a_file_that_cannot_be_a_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_recipe(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_recipe(path)
    path.write_bytes(b"#" * (1 << 21))
    with pytest.raises(ConfigurationError, match="larger than"):
        read_recipe(path)


def test_a_recipe_may_use_anchors(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "merge_method: linear\nmodels:\n- model: a\n  parameters: &p {weight: 1e-5}\n"
        "- model: b\n  parameters: *p\n"
    )
    # PyYAML reads 1e-5 as a text, which a number may be.
    weight = [given.parameters["weight"] for given in read_recipe(path).inputs().values()]
    assert [evaluate(w, "x", 0.0, NUMBER) for w in weight] == [1e-5, 1e-5]


@given(finite, finite, st.floats(0, 1))
def test_a_gradient_lies_between_its_ends_and_meets_them(a: float, b: float, depth: float) -> None:
    setting = parse_setting([a, b])
    value = evaluate(setting, "x", depth, NUMBER)
    low, high = min(a, b), max(a, b)
    assert isinstance(value, float)
    # Two products and a sum are each rounded once.
    slack = 4e-16 * (abs(a) + abs(b))
    assert low - slack <= value <= high + slack
    assert (evaluate(setting, "x", 0.0, NUMBER), evaluate(setting, "x", 1.0, NUMBER)) == (a, b)


@given(st.lists(st.booleans(), min_size=1), st.floats(0, 1))
def test_switches_are_picked_not_mixed(values: list[bool], depth: float) -> None:
    picked = evaluate(parse_setting(values), "x", depth, SWITCH)
    assert picked is values[int(depth * (len(values) - 1))]


def test_the_first_filter_that_is_met_decides_and_none_falls_through() -> None:
    inner = {"weight": parse_setting([{"filter": "mlp", "value": 1}, {"filter": "m", "value": 2}])}
    outer = {"weight": parse_setting(3)}
    found = [
        resolve(NUMBER, (inner, outer), name=name, depth=0.0) for name in ("mlp", "embed", "q")
    ]
    assert found == [1.0, 2.0, 3.0]
    assert resolve(NUMBER, (inner,), name="q", depth=0.0) is None
    assert resolve(SWITCH, (inner,), name="q", depth=0.0) is True
