"""Targets: PEFT's own function says the same."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from brickwork.brick.peft_targets import Targets, match_pattern, read_targets
from brickwork.errors import BrickFormatError

PATHS = [
    *(f"model.layers.{i}.{m}" for i in (0, 1, 11) for m in ("self_attn.q_proj", "mlp.up_proj")),
    "model.layers.1.mlp.experts.0.up_proj", "transformer.h.1.attn.c_proj", "h.1.mlp.c_proj",
    "lm_head", "model.lm_head", "encoder.layers.1.layers.0.q_proj", "q_proj", "xq_proj",
]  # fmt: skip
PATTERNS = [
    r".*q_proj", r".*\.q_proj", "q_proj", r"model\.layers\.(0|11)\..*", r".*\.[0-9]+\..*_proj",
    r".*(up|q)_proj$", r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:q_proj))",
    "(?i).*Q_PROJ", "", ".*", r"^model\..*",
]  # fmt: skip
ENDS = [
    *PATHS, "q_proj", "up_proj", "c_proj", "mlp.up_proj", "0.mlp.up_proj", "lm_head", "proj", "",
]  # fmt: skip
lists = st.lists(st.sampled_from(ENDS), max_size=4)
layers = st.none() | st.integers(0, 12) | st.lists(st.sampled_from([0, 1, 11]), max_size=2)
above = st.none() | st.sampled_from(["", "layers", "h", "model.layers", "experts"])
configs = st.fixed_dictionaries(
    {"target_modules": lists | st.sampled_from(PATTERNS)},
    optional={"exclude_modules": st.none() | lists | st.sampled_from(PATTERNS)},
) | st.fixed_dictionaries(
    {"target_modules": lists, "layers_to_transform": layers},
    optional={"layers_pattern": above | st.lists(st.sampled_from(["layers", "h"]), max_size=2)},
)


@given(configs, st.sampled_from(PATHS))
def test_says_what_peft_says(config: dict[str, Any], path: str) -> None:
    fields = dict(config)
    pattern, chosen = fields.get("layers_pattern"), fields.get("layers_to_transform")
    if pattern and chosen is None:
        del fields["layers_pattern"]  # PEFT refuses one without the other
    theirs = bool(check_target_module_exists(LoraConfig(**fields), path))
    assert read_targets(fields).include(path) == theirs


@given(st.sampled_from(PATHS))
def test_all_linear_means_all(path: str) -> None:
    assert Targets(target_modules="all-linear").include(path)
    assert Targets(target_modules="All-Linear").all_linear


@pytest.mark.parametrize(
    "pattern", ["(", "(?=a)b", r"(a)\1", "a{,3}", "(?P<n", "[", "a" * 10 + "{9999999}"]
)
def test_refuses_patterns_that_cannot_be_matched_in_linear_time(pattern: str) -> None:
    with pytest.raises(BrickFormatError, match="is not one that can be matched safely"):
        match_pattern(pattern, "model.layers.0.q_proj")
