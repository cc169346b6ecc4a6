"""Random Llama checkpoints to merge, and recipes for them, for ``benchmarks.combine``."""

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

SHARD = 120_000_000


@dataclass(frozen=True)
class Size:
    hidden: int = 1024
    inner: int = 2816
    layers: int = 16
    vocabulary: int = 20_000

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        h, n, v = self.hidden, self.inner, self.vocabulary
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, h)}
        for layer in range(self.layers):
            for part, shape in {
                "input_layernorm": (h,), "post_attention_layernorm": (h,),
                "self_attn.q_proj": (h, h), "self_attn.k_proj": (h, h),
                "self_attn.v_proj": (h, h), "self_attn.o_proj": (h, h),
                "mlp.gate_proj": (n, h), "mlp.up_proj": (n, h), "mlp.down_proj": (h, n),
            }.items():  # fmt: skip
                shapes[f"model.layers.{layer}.{part}.weight"] = shape
        return shapes | {"model.norm.weight": (h,), "lm_head.weight": (v, h)}

    @property
    def parameters(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())


SMALL = Size()
TINY = Size(64, 160, 4, 512)


def tensors_of(size: Size, model: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The base (model 0), or a fine-tune of it: small changes, 30 % of them exactly 0."""
    for name, shape in size.shapes.items():
        key = zlib.crc32(name.encode())
        chance = torch.Generator().manual_seed(key)
        base = torch.randn(shape, generator=chance) * 0.02 + float("norm" in name)
        base = base.to(dtype)
        if model:
            chance.manual_seed(key + model)
            change = torch.randn(shape, generator=chance) * 0.002
            change *= torch.rand(shape, generator=chance) > 0.3
            base = (base.float() + change).to(dtype)
        yield name, base


def write_model(folder: Path, size: Size, model: int, dtype: torch.dtype) -> Path:
    """A checkpoint in shards of 120 MB (a fifth of the model, if it is small)."""
    folder.mkdir(parents=True)
    limit = min(SHARD, size.parameters * dtype.itemsize // 5 + 1)
    shards: list[dict[str, Tensor]] = [{}]
    full = 0
    for name, tensor in tensors_of(size, model, dtype):
        if full and full + tensor.nbytes > limit:
            shards.append({})
            full = 0
        shards[-1][name] = tensor
        full += tensor.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": size.parameters * dtype.itemsize}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(configuration(size, dtype)))
    return folder


def configuration(size: Size, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "hidden_size": size.hidden, "intermediate_size": size.inner,
        "num_hidden_layers": size.layers, "num_attention_heads": size.hidden // 32,
        "num_key_value_heads": size.hidden // 32, "vocab_size": size.vocabulary,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": False, "torch_dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip


def recipes(home: Path, layers: int, dtype: str) -> dict[str, dict[str, Any]]:
    """A recipe for each method, as mergekit reads them."""
    base, one, two, three = (str(home / name) for name in ("base", "ft1", "ft2", "ft3"))
    weights = (0.5, 0.3, 0.4)

    def each(**values: Any) -> list[dict[str, Any]]:
        return [
            {"model": model, "parameters": {"weight": weight, **values}}
            for model, weight in zip((one, two, three), weights, strict=True)
        ]

    plain = [{"model": model} for model in (one, two, three)]
    half, quarter = layers * 3 // 4, layers // 4
    found: dict[str, dict[str, Any]] = {
        "copy": {"merge_method": "passthrough", "models": [{"model": one}]},
        "passthrough": {
            "merge_method": "passthrough",
            "slices": [{"sources": [{"model": one, "layer_range": [0, half]}]},
                       {"sources": [{"model": two, "layer_range": [quarter, layers]}]}],
        },
        "linear": {"merge_method": "linear", "models": each()},
        "slerp": {
            "merge_method": "slerp", "base_model": base,
            "models": [{"model": base}, {"model": one}],
            "parameters": {"t": [
                {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
                {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]}, {"value": 0.5}]},
        },
        "nuslerp": {"merge_method": "nuslerp", "models": each()[:2]},
        "multislerp": {"merge_method": "multislerp", "models": each()},
        "karcher": {"merge_method": "karcher", "models": plain},
        "model_stock": {"merge_method": "model_stock", "base_model": base, "models": plain},
        "nearswap": {"merge_method": "nearswap", "base_model": base,
                     "models": [{"model": one}], "parameters": {"t": 0.001}},
        "arcee_fusion": {"merge_method": "arcee_fusion", "base_model": base,
                         "models": [{"model": one}]},
        "sce": {"merge_method": "sce", "base_model": base, "models": plain,
                "parameters": {"select_topk": 0.3}},
        "ram": {"merge_method": "ram", "base_model": base, "models": plain},
        "task_arithmetic": {
            "merge_method": "task_arithmetic", "base_model": base,
            "models": [{"model": m, "parameters": {"weight": w}}
                       for m, w in ((one, 0.8), (two, 0.6), (three, -0.5))],
            "parameters": {"lambda": 0.9},
        },
        "ties": {
            "merge_method": "ties", "base_model": base,
            "models": [
                {"model": one, "parameters": {"weight": 0.5, "density": 0.5}},
                {"model": two, "parameters": {"weight": 0.3, "density": [1, 0.7, 0.1]}},
                {"model": three, "parameters": {"density": 0.33, "weight": [
                    {"filter": "mlp", "value": 0.5}, {"value": 0.2}]}},
            ],
            "parameters": {"normalize": True, "int8_mask": True},
        },
    }  # fmt: skip
    for method, more in {
        "dare_linear": {}, "dare_ties": {}, "della": {"epsilon": 0.1},
        "della_linear": {"epsilon": 0.1}, "breadcrumbs": {"gamma": 0.01},
        "breadcrumbs_ties": {"gamma": 0.01},
    }.items():  # fmt: skip
        models = each(density=0.53, **more)
        found[method] = {"merge_method": method, "base_model": base, "models": models}
    return {method: {**recipe, "dtype": dtype} for method, recipe in found.items()}


def many_tensors(folder: Path, layers: int, seed: int) -> Path:
    """A checkpoint of nine tiny tensors for each layer."""
    return write_model(folder, Size(32, 32, layers, 32), seed, torch.float32)


def flat(recipe: Mapping[str, Any]) -> str:
    """The recipe as a file's text: JSON is YAML."""
    return json.dumps(recipe)
