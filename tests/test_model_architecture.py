"""The rows of the families: roles resolve, every file has a tiny model, bad rows are refused."""

from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from brickwork.errors import ModelError, UnknownNameError
from brickwork.model import architecture
from brickwork.model.architecture import (
    FFN_ROLES,
    Architecture,
    architecture_for,
    architectures,
    read_architecture,
)
from brickwork.model.parts import ffn_row_of, find_module, find_part, layers_of
from tests.tiny import FAMILIES, tiny_model

GOOD = """
model_type = "{name}"
source = "nobody 2026"
orientation = "out in"
[roles]
block = "model.layers.{{layer}}"
"mlp.up" = "model.layers.{{layer}}.up"
"mlp.down" = "model.layers.{{layer}}.down"
[[ffn]]
form = "vanilla"
activation = "model.layers.{{layer}}.act"
"""


def row_from(text: str, folder: Path) -> Architecture:
    file = folder / "row.toml"
    file.write_text(text)
    return read_architecture(file)


def test_every_file_has_a_tiny_model_and_is_named_after_its_family() -> None:
    folder = files("brickwork.model") / "architectures"
    assert {file.name for file in folder.iterdir()} == {f"{family}.toml" for family in FAMILIES}
    assert set(architectures()) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_role_resolves(family: str) -> None:
    model, row = tiny_model(family), architecture_for(family)
    somewhere = set()
    for layer in range(layers_of(model)):
        found = {role for role in row.roles if find_module(model, row.path(role, layer))}
        ffn = ffn_row_of(model, layer)
        assert found >= {"block", "attn", *FFN_ROLES[ffn.form]}
        assert find_module(model, ffn.activation.replace("{layer}", str(layer))) is not None
        assert all(find_part(model, role, layer) for role in ("attn.q", "attn.k", "attn.v"))
        somewhere |= found
    assert somewhere == set(row.roles)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_orientation_is_that_of_the_modules(family: str) -> None:
    model = tiny_model(family)
    expected = Conv1D if architecture_for(family).orientation == "in out" else nn.Linear
    for layer in range(layers_of(model)):
        for role in ("attn.q", "attn.o", "mlp.up", "mlp.down"):
            part = find_part(model, role, layer)
            if part is None:
                assert ffn_row_of(model, layer).form == "moe_gated"
            else:
                assert type(model.get_submodule(part.module)) is expected


def test_an_unknown_family_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UnknownNameError, match=r"'lama'; did you mean 'llama'\?"):
        architecture_for("lama")


def test_a_package_adds_a_row_and_never_a_second_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [row_from(GOOD.format(name="mine"), tmp_path)]
    entries = [SimpleNamespace(load=lambda: rows[-1])]
    monkeypatch.setattr(architecture, "entry_points", lambda group: entries)
    try:
        architectures.cache_clear()
        assert architecture_for("mine").source == "nobody 2026"
        rows.append(row_from(GOOD.format(name="llama"), tmp_path))
        architectures.cache_clear()
        with pytest.raises(ModelError, match="two rows describe the family 'llama'"):
            architectures()
    finally:
        architectures.cache_clear()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[roles]", "[roles", "is not TOML"),
        ('source = "nobody 2026"', "", "source: Field required"),
        ("[roles]", "heads = 3\n[roles]", "heads: Unexpected keyword"),
        ('"mlp.up"', '"mlp.upp"', r"'mlp.upp' is no role .*'mlp.up' is missing"),
        ('form = "vanilla"', 'form = "moe_gated"', "'experts' must say where"),
        ('"mlp.up"', '"attn.qkv" = "x"\n"mlp.up"', r"must say how \['attn.qkv'\] order"),
    ],
)
def test_a_bad_row_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        row_from(GOOD.format(name="mine").replace(old, new), tmp_path)
