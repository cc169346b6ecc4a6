"""An address names exactly the entries that its part is made of."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from brickwork.brick.address import Address
from brickwork.errors import AddressError, UnknownNameError
from brickwork.model.heads import heads_of
from brickwork.model.parts import part_of
from brickwork.model.slices import slices_at
from brickwork.model.sockets import sites_of
from brickwork.model.units import unit_counts
from tests.tiny import FAMILIES, silence, tiny_model, unknown_model

IDS = torch.arange(2, 26).reshape(2, 12)


@pytest.fixture
def attention(monkeypatch: pytest.MonkeyPatch) -> Callable[[PreTrainedModel], list[Tensor]]:
    """A function that gives the queries, keys and values of the last layer in a forward."""
    calls: list[list[Tensor]] = []
    real = ALL_ATTENTION_FUNCTIONS.get_interface

    def spying(name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        def spy(module: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
            calls.append([q.clone(), k.clone(), v.clone()])
            return real(name, default)(module, q, k, v, *args, **kwargs)

        return spy

    monkeypatch.setattr(ALL_ATTENTION_FUNCTIONS, "get_interface", spying)

    def watch(model: PreTrainedModel) -> list[Tensor]:
        with torch.no_grad():
            model(IDS)
        return calls[-1]

    return watch


@pytest.mark.parametrize("word", ["attn.heads", "attn.kv_heads"])
@pytest.mark.parametrize("family", FAMILIES)
def test_zeroed_heads_are_those_that_fall_silent(
    family: str, word: str, attention: Callable[[PreTrainedModel], list[Tensor]]
) -> None:
    """Also says that the sizes of an attention site are those of the tensors inside it."""
    model = tiny_model(family)
    heads = heads_of(model.config, 1)
    before = attention(model)
    slices = slices_at(model, Address(1, word, (1,)))
    silence(model, slices)
    after = attention(model)
    whole_group = word == "attn.kv_heads" or heads.group == 1
    queries = range(heads.group, 2 * heads.group) if word == "attn.kv_heads" else (1,)
    normed_together = any("q_norm" in part.parameter for part in slices)
    for old, new, silent, count in (
        (before[0], after[0], set(queries), heads.heads),
        (before[1], after[1], {1} if whole_group else set(), heads.kv_heads),
        (before[2], after[2], {1} if whole_group else set(), heads.kv_heads),
    ):
        assert (new.shape[1], new.shape[-1]) == (count, heads.head_dim)
        for head in range(count):
            if head in silent:
                assert not new[:, head].any()
            elif not normed_together:  # a norm over all heads (OLMo 2) scales those that are left
                torch.testing.assert_close(new[:, head], old[:, head])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_output_of_attention_does_not_read_a_zeroed_head(family: str) -> None:
    model = tiny_model(family)
    width = heads_of(model.config, 1).head_dim
    o = model.get_submodule(part_of(model, "attn.o", 1).module)
    x = torch.randn(5, 4 * width, generator=torch.Generator().manual_seed(0))
    without = x.clone()
    without[:, 2 * width : 3 * width] = 0
    expected = o(without)
    silence(model, slices_at(model, Address(1, "attn.heads", (2,))))
    torch.testing.assert_close(o(x), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_address_of_a_site_names_its_parameters(family: str) -> None:
    model = tiny_model(family)
    for site in sites_of(model).values():
        own = {f"{site.path}.{n}" for n, _ in model.get_submodule(site.path).named_parameters()}
        slices = slices_at(model, Address.parse(site.address))
        if site.kind == "experts":  # units, each with its row of the router
            own.add(f"{site.path.removesuffix('experts')}gate.weight")
        assert {part.parameter for part in slices} == own
        assert site.kind == "experts" or all(part.indices is None for part in slices)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_units_of_a_word_are_meant_if_none_is_named(family: str) -> None:
    model = tiny_model(family)
    for word, count in unit_counts(model, 1).items():
        everyone = slices_at(model, Address(1, word, tuple(range(count))))
        assert slices_at(model, Address(1, word)) == everyone


def test_roles_inside_fused_maps_are_their_rows() -> None:
    model = tiny_model("gpt_neox")  # each head: 8 query, 8 key, 8 value outputs
    weight, bias = slices_at(model, Address.parse("layers.0.attn.k"))
    assert weight.indices is not None
    assert (weight.axis, weight.indices[:9]) == (0, (8, 9, 10, 11, 12, 13, 14, 15, 32))
    assert bias.indices == weight.indices
    (up,) = slices_at(tiny_model("phi3"), Address.parse("layers.0.mlp.up"))
    assert (up.axis, up.indices) == (0, tuple(range(48, 96)))
    (values, _) = slices_at(tiny_model("gpt2"), Address.parse("layers.0.attn.v"))
    assert (values.axis, values.indices) == (1, tuple(range(64, 96)))


def test_an_expert_is_its_matrices_and_its_row_of_the_router() -> None:
    model = tiny_model("mixtral")
    slices = slices_at(model, Address.parse("layers.1.mlp.experts[2]"))
    shapes = [list(part.of(model.get_parameter(part.parameter)).shape) for part in slices]
    assert shapes == [[1, 32], [1, 96, 32], [1, 32, 48]]
    gate_up, down = slices_at(model, Address.parse("layers.1.mlp.neurons[145]"))
    experts = model.get_parameter(gate_up.parameter)
    assert (gate_up.expert, gate_up.indices, down.indices) == (3, (1, 49), (1,))
    assert torch.equal(gate_up.of(experts), experts[3, [1, 49]])


def test_opt_has_an_ffn_without_a_module() -> None:
    paths = [part.parameter for part in slices_at(tiny_model("opt"), Address.parse("layers.0.mlp"))]
    names = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    assert paths == [f"model.decoder.layers.0.{name}" for name in names]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("layers.2", r"'layers.2': this model has the layers 0 to 1\."),
        ("layers.1.mlp.neurons[7,48]", r"no unit 48 in .*: layers.1 has mlp.neurons\[0-47\]\."),
        ("layers.1.attn.kv_heads[2]", r"layers.1 has attn.kv_heads\[0-1\]"),
        ("layers.1.mlp.experts[0]", "in layers.1 this model has attn, .*, mlp.neurons"),
        ("layers.1.attn.qkv", "in layers.1 this model has attn, attn.q, "),
        ("layers.1.block", "there is no 'layers.1.block'"),
        ("layers.1.embed", "there is no 'layers.1.embed'"),
        ("positions", "outside its layers this model has embed, unembed, final_norm"),
        ("embed[3]", "numbers units of a part that has none"),
        ("layers.0[3]", "numbers units of a part that has none"),
    ],
)
def test_what_is_not_there_is_refused(address: str, message: str) -> None:
    model = tiny_model("llama")
    parsed = Address(0, "", (3,)) if address == "layers.0[3]" else Address.parse(address)
    with pytest.raises(AddressError, match=message):
        slices_at(model, parsed)


def test_an_unknown_family_has_no_addresses() -> None:
    with pytest.raises(UnknownNameError, match="no model family is called 'stablelm'"):
        slices_at(unknown_model(), Address.parse("layers.0"))
