"""Sites: their sizes are those of the real modules, their addresses are one per place."""

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from brickwork.brick.address import Address
from brickwork.brick.base import Site
from brickwork.model.sockets import sites_of
from tests.tiny import FAMILIES, tiny_model, unknown_model


def last_axes(model: PreTrainedModel, paths: list[str]) -> dict[str, tuple[int, int]]:
    """The last axis of what goes into and out of each module in a real forward."""
    found = {}

    def note(path: str, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        result = output if isinstance(output, Tensor) else output[0]
        found[path] = (args[0].shape[-1] if args else 0, result.shape[-1])

    for path in paths:
        model.get_submodule(path).register_forward_hook(
            lambda _module, args, output, path=path: note(path, args, output)
        )
    with torch.no_grad():
        model(torch.arange(2, 12)[None])
    return found


def check_sizes(model: PreTrainedModel, site: Site, axes: tuple[int, int]) -> None:
    module, sizes = model.get_submodule(site.path), dict(site.sizes)
    if site.kind == "linear":
        assert sizes == {"in": axes[0], "out": axes[1]}
        assert sorted(module.weight.shape) == sorted(sizes.values())
    elif site.kind == "norm":
        assert sizes == {"out": axes[1]} == {"out": len(module.weight)}
    elif site.kind == "embedding":
        assert isinstance(module, nn.Embedding)
        assert [sizes["vocabulary"], sizes["hidden"]] == list(module.weight.shape)
    elif site.kind == "block":
        assert sizes == {"hidden": axes[1]}


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_those_of_the_real_modules(family: str) -> None:
    """An attention's sizes are checked against its keys in test_model_slices."""
    model = tiny_model(family)
    sites = sites_of(model)
    axes = last_axes(model, [site.path for site in sites.values() if site.kind != "attention"])
    for site in sites.values():
        check_sizes(model, site, axes.get(site.path, (0, 0)))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_map_norm_block_and_attention_is_a_site(family: str) -> None:
    model = tiny_model(family)
    sites = sites_of(model)
    assert list(sites) == [path for path, _ in model.named_modules() if path in sites]
    kinds = [site.kind for site in sites.values()]
    assert (kinds.count("block"), kinds.count("attention"), kinds.count("embedding")) == (2, 2, 1)
    with_matrix = {
        path
        for path, module in model.named_modules()
        if "Linear" in type(module).__name__ or "Conv1D" in type(module).__name__
    }
    assert {site.path for site in sites.values() if site.kind == "linear"} == with_matrix
    norms = {path for path, module in model.named_modules() if "Norm" in type(module).__name__}
    assert {site.path for site in sites.values() if site.kind == "norm"} == norms


@pytest.mark.parametrize("family", FAMILIES)
def test_addresses_are_words_and_name_one_site_each(family: str) -> None:
    sites = sites_of(tiny_model(family))
    addresses = [Address.parse(site.address) for site in sites.values()]
    assert len(set(addresses)) == len(sites)
    assert [address.layer for address in addresses] == [site.layer for site in sites.values()]


def test_the_same_place_has_the_same_address_in_every_family() -> None:
    for family in FAMILIES:
        sites = {site.address: site for site in sites_of(tiny_model(family)).values()}
        assert sites["embed"].kind == "embedding"
        assert sites["unembed"].sizes == {"in": 32, "out": 112}
        assert sites["layers.1"].kind == "block"
        assert sites["layers.1.attn"].kind == "attention"
        assert sites["layers.1.attn.o"].kind == "linear"
        assert sites["final_norm"].kind == "norm"


def test_a_linear_map_without_a_role_keeps_its_path() -> None:
    model = tiny_model("llama")
    model.model.layers[1].extra = nn.Linear(32, 5)
    site = sites_of(model)["model.layers.1.extra"]
    assert (site.address, site.layer) == ("model.layers.1.extra", 1)


def test_an_unknown_family_has_its_linear_maps_norms_and_embedding() -> None:
    sites = sites_of(unknown_model())
    assert {site.kind for site in sites.values()} == {"linear", "norm", "embedding"}
    assert sites["lm_head"].address == "unembed"
    assert sites["model.embed_tokens"].address == "embed"
    site = sites["model.layers.1.self_attn.q_proj"]
    assert (site.address, site.layer, site.sizes["in"]) == (site.path, None, 32)
