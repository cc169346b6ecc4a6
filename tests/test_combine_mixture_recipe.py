"""Recipes of mixtures: mergekit-moe's YAML as it is, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from brickwork.combine.mixture_recipe import parse_mixture, read_mixture
from brickwork.combine.plan import ModelRef
from brickwork.errors import ConfigurationError

YAML = """
base_model: org/base@v2
gate_mode: hidden
dtype: bfloat16
experts_per_token: 1
experts:
  - source_model: org/maths
    positive_prompts: ["solve"]
    negative_prompts: ["poem"]
    residual_scale: 0.1
  - source_model: org/poems+org/adapter
    positive_prompts: ["poem"]
shared_experts:
"""


def test_reads_mergekit_s_yaml(tmp_path: Path) -> None:
    (tmp_path / "moe.yaml").write_text(YAML)
    recipe = read_mixture(tmp_path / "moe.yaml")
    assert recipe.refs() == (
        ModelRef("org/base", "v2"), ModelRef("org/maths"), ModelRef("org/poems", lora="org/adapter")
    )  # fmt: skip
    assert recipe.experts[0].negative_prompts == ("poem",)
    assert recipe.shared_experts == ()


def experts(*prompts: list[str] | None) -> list[dict[str, Any]]:
    return [{"source_model": f"org/m{n}", "positive_prompts": p} for n, p in enumerate(prompts)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate_mod": "random"}, "gate_mod"),
        ({"gate_mode": "hiden"}, "gate_mode"),
        ({"experts": experts(["a"], None)}, "positive_prompts for every expert, and org/m1 has"),
        ({"experts": experts(["a"], ["a"])}, "could not tell them apart"),
        ({"experts_per_token": 3}, "experts_per_token is 3, but there are 2 experts"),
        ({"experts": [], "experts_per_token": 0}, "experts_per_token"),
        ({"dtype": "float7"}, "dtype"),
    ],
)
def test_refuses_what_would_not_work(change: dict[str, Any], message: str) -> None:
    document = {"base_model": "org/base", "experts": experts(["a"], ["b"])}
    assert parse_mixture(document).experts_per_token == 2
    with pytest.raises(ConfigurationError, match=message):
        parse_mixture(document | change)


def test_random_routers_need_no_prompts() -> None:
    document = {"base_model": "org/base", "experts": experts(None, None), "gate_mode": "random"}
    assert parse_mixture(document).random
