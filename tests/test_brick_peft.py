"""PEFT adapters become bricks and bricks are PEFT adapters, for every family, to the bit."""

import json
import re
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from brickwork.brick.base import Base
from brickwork.brick.brick import Brick
from brickwork.brick.effects import Add, Embed, Prefix, Scale
from brickwork.brick.folder import read_brick, read_peft, write_brick
from brickwork.brick.forms import effects_of, find_form
from brickwork.model.load import wrap_model
from tests.bricks import FORMS, random_brick
from tests.tiny import FAMILIES, tiny_model

# PEFT calls a method of Transformers that is to be renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
every_family = pytest.mark.parametrize("family", FAMILIES)
IDS = torch.tensor([[1, 5, 7, 2, 9, 3]])
PEFT_FORMS = tuple(name for name in FORMS if find_form(name).peft)
# PEFT corrects the orientation of GPT-2's weights by itself, and says so.
CORRECTED = "fan_in_fan_out is set to False but the target module is `Conv1D`"


@cache
def base_of(family: str) -> Base:
    return wrap_model(tiny_model(family)).base


def linears(base: Base) -> list[str]:
    """The linear maps inside the layers; of models with experts, those of the attentions.

    PEFT takes the name of any other linear map of such a model for the experts, which it keeps as
    parameters, also where a layer has no experts.
    """
    inside = [site for site in base.of_kind("linear") if site.layer is not None]
    with_experts = re.search("moe|mixtral", base.fingerprint.architecture.lower())
    return [site.path for site in inside if not with_experts or ".attn." in site.address]


def linear_leaves(base: Base) -> list[str]:
    """The last words of the linear maps: ``q_proj``, ``down_proj``."""
    return list(dict.fromkeys(path.rpartition(".")[2] for path in linears(base)))


def lora(base: Base, **fields: Any) -> LoraConfig:
    chosen = {"r": 2, "target_modules": linear_leaves(base), **fields}
    return LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **chosen)


def mixed_lora(base: Base) -> LoraConfig:
    leaves = linear_leaves(base)
    ranks, alphas = {leaves[0]: 5}, {leaves[-1]: 2.5}
    return lora(base, r=3, lora_alpha=6, rank_pattern=ranks, alpha_pattern=alphas)


def rank_stabilised(base: Base) -> LoraConfig:
    alphas = {f"^{site.path}": 4 for site in base.of_kind("linear") if site.layer == 1}
    return lora(base, r=4, lora_alpha=9, use_rslora=True, alpha_pattern=alphas)


def pattern(base: Base) -> LoraConfig:
    leaves = "|".join(linear_leaves(base)[:2])
    return lora(base, target_modules=rf".*\.[0-9]+\..*({leaves})")


def factors(base: Base) -> IA3Config:
    leaves = linear_leaves(base)
    return IA3Config(target_modules=leaves, feedforward_modules=leaves[-1:], task_type="CAUSAL_LM")


def prompt(base: Base) -> PromptTuningConfig:
    return PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")


def prefix(base: Base, **fields: Any) -> PrefixTuningConfig:
    return PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM", **fields)


PLAIN_KINDS: Mapping[str, Callable[[Base], PeftConfig]] = {
    "lora": mixed_lora,
    "ia3": factors,
    "prompt": prompt,
    "prefix": prefix,
}
SPECIAL_KINDS: Mapping[str, Callable[[Base], PeftConfig]] = {
    "rslora": rank_stabilised,
    "one layer": lambda base: lora(base, layers_to_transform=[1]),
    "pattern": pattern,
    "projected prefix": lambda base: prefix(base, prefix_projection=True, encoder_hidden_size=7),
}
# Rotary and learned positions, turned weights, fused maps, two kinds of attention.
SOME_FAMILIES = ("llama", "gpt2", "phi3", "gemma3_text")
WORDS = ("lora_", "ia3_", "prompt_encoder")


def save_adapter(model: PreTrainedModel, config: PeftConfig, folder: Path) -> Tensor:
    """Save an adapter with random weights by PEFT alone; its logits."""
    adapted = get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if any(word in name for word in WORDS):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    adapted.save_pretrained(folder)
    return logits(adapted)


def logits(model: Callable[..., Any], **inputs: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**(inputs or {"input_ids": IDS})).logits
    return found


def load_by_peft(family: str, folder: Path) -> PeftModel:
    """The folder as PEFT alone loads it; any warning but the one of GPT-2 is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=CORRECTED)
        return PeftModel.from_pretrained(tiny_model(family), folder).eval()


def same_tensors(first: Path, second: Path) -> bool:
    one, two = (load_file(f / "adapter_model.safetensors") for f in (first, second))
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in one
    )


@pytest.mark.parametrize(
    ("kind", "family"),
    [*product(PLAIN_KINDS, FAMILIES), *product(SPECIAL_KINDS, SOME_FAMILIES)],
)
def test_an_adapter_of_peft_goes_through_a_brick_unharmed(
    kind: str, family: str, tmp_path: Path
) -> None:
    base = base_of(family)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=CORRECTED)
        expected = save_adapter(
            tiny_model(family), {**PLAIN_KINDS, **SPECIAL_KINDS}[kind](base), tmp_path / "peft"
        )
    brick = read_peft(tmp_path / "peft", base, "imported")
    write_brick(brick, tmp_path / "brick")
    configs = [
        json.loads((tmp_path / folder / "adapter_config.json").read_text())
        for folder in ("peft", "brick")
    ]
    assert configs[0] == configs[1] == brick.spec.peft
    assert same_tensors(tmp_path / "peft", tmp_path / "brick")
    assert torch.equal(logits(load_by_peft(family, tmp_path / "brick")), expected)
    assert read_brick(tmp_path / "brick") == brick


@pytest.mark.parametrize("family", SOME_FAMILIES)
@pytest.mark.parametrize("kind", PLAIN_KINDS)
def test_the_brick_says_the_same_without_the_configuration_that_it_keeps(
    kind: str, family: str, tmp_path: Path
) -> None:
    base = base_of(family)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=CORRECTED)
        expected = save_adapter(
            tiny_model(family), {**PLAIN_KINDS, **SPECIAL_KINDS}[kind](base), tmp_path / "peft"
        )
    imported = read_peft(tmp_path / "peft", base, "imported")
    plain = Brick(imported.spec.model_copy(update={"peft": None}), imported.tensors)
    write_brick(plain, tmp_path / "brick")
    assert same_tensors(tmp_path / "peft", tmp_path / "brick")
    assert torch.equal(logits(load_by_peft(family, tmp_path / "brick")), expected)


def weight_of(model: nn.Module, site: str) -> Tensor:
    """The weight of a linear map as out x in, also where GPT-2 keeps it turned; a view."""
    module = model.get_submodule(site)
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.data.T if isinstance(module, Conv1D) else weight.data


def by_hand(model: PreTrainedModel, brick: Brick) -> Tensor:
    """The logits that the brick's effects mean, without PEFT."""
    found = effects_of(brick)
    for effect in found:
        if isinstance(effect, Add):
            weight_of(model, effect.site).add_(effect.scaling * effect.B @ effect.A)
        elif isinstance(effect, Scale) and effect.on == "in":
            weight_of(model, effect.site).mul_(effect.factor)
        elif isinstance(effect, Scale):
            weight_of(model, effect.site).mul_(effect.factor[:, None])
            bias = model.get_submodule(effect.site).bias
            if isinstance(bias, Tensor):
                bias.data.mul_(effect.factor)
        elif isinstance(effect, Embed):
            words = model.get_input_embeddings()(IDS)
            return logits(model, inputs_embeds=torch.cat([effect.vectors[None], words], dim=1))
    prefix = [(e.key[None], e.value[None]) for e in found if isinstance(e, Prefix)]
    if prefix:
        cache = DynamicCache(config=model.config)
        for layer, (key, value) in enumerate(prefix):
            cache.update(key, value, layer)
        return logits(model, input_ids=IDS, past_key_values=cache)
    return logits(model)


@every_family
@pytest.mark.parametrize("form", PEFT_FORMS)
def test_peft_loads_a_brick_that_it_never_saw(form: str, family: str, tmp_path: Path) -> None:
    base = base_of(family)
    sites = linears(base)[1::2] if find_form(form).spread == "any" else None
    generator = torch.Generator().manual_seed(5)
    brick = random_brick(form, base, generator, sites=sites)
    if form == "lora":
        scaling = {"alpha": 3, "alphas": {brick.spec.sites[0]: 1.5}, "rslora": True}
        brick = Brick(brick.spec.model_copy(update={"options": scaling}), brick.tensors)
        assert len({t.shape[0] for n, t in brick.tensors.items() if n.endswith("/A")}) > 1
    write_brick(brick, tmp_path / "brick")
    found = logits(load_by_peft(family, tmp_path / "brick"))
    assert not torch.allclose(found[:, -6:], logits(tiny_model(family)), atol=1e-3)
    # Added to the weight or to the output: other roundings, and layers between to spread them.
    torch.testing.assert_close(found, by_hand(tiny_model(family), brick), rtol=1e-3, atol=1e-4)


def test_an_adapter_of_all_linear_maps_leaves_out_the_unembedding(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    save_adapter(tiny_model("llama"), config, tmp_path / "peft")
    place = tmp_path / "peft" / "adapter_config.json"
    written = json.loads(place.read_text())
    place.write_text(json.dumps({**written, "target_modules": "all-linear"}))
    base = base_of("llama")
    brick = read_peft(tmp_path / "peft", base, "x")
    assert list(brick.spec.sites) == linears(base)


def test_many_sites_survive_pefts_shortening_of_their_names(tmp_path: Path) -> None:
    base = base_of("llama")
    every = [site.path for site in base.of_kind("linear")]
    for count in range(1, len(every) + 1, 3):
        sites = every[:count] if count % 2 else every[-count:]
        brick = random_brick("lora", base, torch.Generator().manual_seed(count), sites=sites)
        write_brick(brick, tmp_path / "brick", replace=True)
        loaded = load_by_peft("llama", tmp_path / "brick").get_base_model()
        assert [s for s in every if hasattr(loaded.get_submodule(s), "lora_A")] == sites


def test_a_lora_at_the_unembedding_is_a_brick_and_an_adapter(tmp_path: Path) -> None:
    base = base_of("gpt_neox")
    (site,) = [site.path for site in base.of_kind("linear") if site.address == "unembed"]
    brick = random_brick("lora", base, torch.Generator().manual_seed(0), sites=[site])
    write_brick(brick, tmp_path / "brick")
    found = logits(load_by_peft("gpt_neox", tmp_path / "brick"))
    torch.testing.assert_close(found, by_hand(tiny_model("gpt_neox"), brick))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_keep_their_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    base = base_of("llama")
    brick = random_brick("lora", base, torch.Generator().manual_seed(0), dtype=dtype)
    write_brick(brick, tmp_path / "brick")
    held = load_file(tmp_path / "brick" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in held.values()} == {dtype}
    load_by_peft("llama", tmp_path / "brick")


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", True])
def test_initialisations_that_leave_the_base_alone_are_accepted(init: Any, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=init)
    expected = save_adapter(tiny_model("llama"), config, tmp_path / "peft")
    brick = read_peft(tmp_path / "peft", base_of("llama"), "imported")
    torch.testing.assert_close(by_hand(tiny_model("llama"), brick), expected)


def test_the_imported_brick_knows_where_it_comes_from(tmp_path: Path) -> None:
    base = base_of("llama")
    save_adapter(tiny_model("llama"), mixed_lora(base), tmp_path / "peft")
    brick = read_peft(tmp_path / "peft", base, "fr-en", licence="mit")
    assert brick.spec.lineage.method == "imported from PEFT"
    assert (brick.spec.name, brick.spec.licence, brick.spec.base) == (
        "fr-en",
        "mit",
        base.fingerprint,
    )
    assert list(brick.spec.sites) == [path for path in base.sites if path in brick.by_site]


def test_the_same_adapter_gives_the_same_brick(tmp_path: Path) -> None:
    base = base_of("llama")
    save_adapter(tiny_model("llama"), mixed_lora(base), tmp_path / "peft")
    first, second = (read_peft(tmp_path / "peft", base, "x") for _ in range(2))
    assert first == second


def patterns() -> Mapping[str, int]:
    return {
        "q_proj": 1, "self_attn.k_proj": 2, "layers.1.self_attn.v_proj": 3, "^layers.0": 4,
        "^model.layers.0.self_attn.o_proj": 5, "proj": 6, "model.layers.0.mlp.up_proj": 7,
        r"layers\.1\.mlp\.gate_proj": 8, "_proj": 9,
    }  # fmt: skip


def test_patterns_mean_what_they_mean_in_peft(tmp_path: Path) -> None:
    from peft.utils.other import get_pattern_key

    base, table = base_of("llama"), patterns()
    leaves = [leaf for leaf in linear_leaves(base) if leaf != "down_proj"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not")
        config = LoraConfig(r=11, target_modules=leaves, rank_pattern=table, alpha_pattern=table)
        save_adapter(tiny_model("llama"), config, tmp_path / "peft")
        loaded = load_by_peft("llama", tmp_path / "peft").get_base_model()
    brick = read_peft(tmp_path / "peft", base, "x")
    expected = {site: table.get(get_pattern_key(table, site), 11) for site in brick.spec.sites}
    assert {site: slots["A"].shape[0] for site, slots in brick.by_site.items()} == expected
    assert len(set(expected.values())) >= 6
    scalings = {e.site: e.scaling for e in effects_of(brick) if isinstance(e, Add)}
    assert scalings == {s: loaded.get_submodule(s).scaling["default"] for s in expected}
