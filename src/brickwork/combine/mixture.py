"""Dense models as one mixture of experts: each model's FFNs are an expert of every layer.

Attention, norms and embeddings are the base's. Weights are copied to the bit, and the result is a
checkpoint with the tensor names that its family is published with.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig

from brickwork.combine.engine import Extras, MergeSummary, write_merge
from brickwork.combine.mixture_recipe import Expert, MixtureRecipe
from brickwork.combine.mixture_router import (
    EMBEDDING,
    ExpertPrompts,
    prompted_rows,
    random_rows,
)
from brickwork.combine.operands import Source
from brickwork.combine.plan import MergePlan, ModelRef, Operand, TensorPlan
from brickwork.errors import MergeError, listed
from brickwork.model.config import read_config
from brickwork.model.mixture_targets import (
    FILLER,
    MixtureSizes,
    MixtureTarget,
    choose_target,
    head_width,
)
from brickwork.model.shards import Held, Shards

_FFN = "model.layers.{layer}.mlp.{part}.weight"
_PARTS = ("gate_proj", "up_proj", "down_proj")
# Rows whose random numbers are drawn together, whatever pieces they are read in.
_DRAWN = 64
# Above this condition number of a router, experts are hard to tell apart; mergekit warns, too.
_ALIKE = 5.0


@dataclass(frozen=True)
class Mixture:
    """What a mixture will be written from.

    Attributes:
        plan: its tensors and configuration.
        tensors: those of them that no model holds: routers, and zeros where the family has more.
        changed: the experts whose tensors get noise or another scale, by output tensor.
        target: the family.
        said: the recipe but for the models, for the record.
    """

    plan: MergePlan
    tensors: Mapping[str, Tensor]
    changed: Mapping[str, Expert]
    target: MixtureTarget
    said: Mapping[str, Any]

    @property
    def extras(self) -> Extras:
        """What the engine needs besides the plan."""
        return Extras(rearranged=self._altered, tensors=self.tensors, record=self._record)

    @property
    def _record(self) -> dict[str, Any]:
        return {"family": self.target.model_type, "mixture": self.said}

    def _altered(
        self, tensor: TensorPlan, sources: Mapping[Operand, Source]
    ) -> Mapping[Operand, Source]:
        expert = self.changed.get(tensor.name)
        if expert is None:
            return sources
        residual = tensor.name.endswith((".w2.weight", ".down_proj.weight"))
        scale = expert.residual_scale if residual and expert.residual_scale is not None else 1.0
        noise, seed = expert.noise_scale or 0.0, f"{self.plan.seed}\0{tensor.name}"
        return {o: AlteredSource(s, noise, scale, seed) for o, s in sources.items()}


@dataclass(frozen=True)
class AlteredSource:
    """A tensor with normal noise of a size added, then scaled; equal seeds give equal noise."""

    inner: Source
    noise: float
    scale: float
    seed: str

    @property
    def shape(self) -> tuple[int, ...]:
        """See ``Source.shape``."""
        return self.inner.shape

    def read(self, start: int, stop: int) -> Float[Tensor, "rows columns"]:
        """See ``Source.read``."""
        rows = self.inner.read(start, stop)
        if self.noise:
            first, last = start // _DRAWN, -(-stop // _DRAWN)
            drawn = torch.cat([self._draw(block, rows.shape[1]) for block in range(first, last)])
            rows = rows + self.noise * drawn[start - first * _DRAWN :][: stop - start]
        return rows * self.scale

    def _draw(self, block: int, columns: int) -> Float[Tensor, "rows columns"]:
        text = f"{self.seed}\0{block}".encode()
        number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
        generator = torch.Generator().manual_seed(number)
        return torch.randn(_DRAWN, columns, generator=generator)


def write_mixture(
    recipe: MixtureRecipe,
    folder: Path,
    *,
    fetch: Callable[[ModelRef], Path],
    device: str = "auto",
    advance: Callable[[int], None] = lambda _bytes: None,
) -> MergeSummary:
    """Write the mixture as a new checkpoint: all of it, or nothing.

    Args:
        recipe: which models, and what their experts are for.
        folder: where; there must be nothing yet.
        fetch: gives the folder of a model's checkpoint, without its adapter.
        device: where the base reads the prompts.
        advance: told the bytes of output that have just been finished.

    Raises:
        MergeError: as ``plan_mixture`` and ``write_merge``.
        UnknownNameError, ModelError: as ``plan_mixture``.
    """
    mixture = plan_mixture(recipe, fetch, device=device)
    return write_merge(mixture.plan, folder, extras=mixture.extras, advance=advance)


def plan_mixture(
    recipe: MixtureRecipe,
    fetch: Callable[[ModelRef], Path],
    *,
    device: str = "auto",
    read_prompts: bool = True,
) -> Mixture:
    """What ``write_mixture`` writes, routers included, which take a pass over the prompts.

    Args:
        recipe: which models, and what their experts are for.
        fetch: gives the folder of a model's checkpoint, without its adapter.
        device: where the base reads the prompts.
        read_prompts: if False, no weights are loaded and routers are 0: enough to tell sizes.

    Raises:
        UnknownNameError: if no family is called as the recipe says.
        MergeError: if no family fits, models do not go together, or prompts cannot be read.
        ModelError: if a model is damaged.
    """
    folders = {ref: fetch(ref) for ref in recipe.refs()}
    configs = {ref: read_config(path, str(ref)) for ref, path in folders.items()}
    base = configs[recipe.base_model]
    sizes = MixtureSizes(
        len(recipe.experts), recipe.experts_per_token, len(recipe.shared_experts),
        getattr(base, "intermediate_size", 0),
    )  # fmt: skip
    target = choose_target(base, sizes, recipe.architecture)
    draft = _Draft(recipe, target, base, {r: Shards(f) for r, f in folders.items()})
    draft.require_fitting(configs)
    draft.add_base()
    draft.add_experts()
    _require_reader(recipe)
    routers = (
        _routers(recipe, base, folders[recipe.base_model], device)
        if read_prompts
        else torch.zeros(base.num_hidden_layers, len(recipe.every), base.hidden_size)
    )
    draft.add_routers(routers)
    if target.shared and not sizes.shared:
        draft.add_filler()
    config = target.config(base, sizes).to_dict()
    config.pop("_name_or_path", None)  # a folder of this machine
    config["dtype"] = str(draft.dtype).removeprefix("torch.")
    plan = MergePlan(
        draft.plans, folders, config, recipe.base_model,
        seed=recipe.seed, notes=_notes(routers[:, : sizes.experts]) if read_prompts else (),
    )  # fmt: skip
    unnamed = {"experts", "shared_experts"}
    said = recipe.model_dump(mode="json", exclude={"base_model", *unnamed})
    for kind in unnamed:
        experts: tuple[Expert, ...] = getattr(recipe, kind)
        said[kind] = [e.model_dump(mode="json", exclude={"source_model"}) for e in experts]
    return Mixture(plan, draft.tensors, draft.changed, target, said)


def _require_reader(recipe: MixtureRecipe) -> None:
    if recipe.base_model.lora and not recipe.random:
        raise MergeError(
            f"prompts were to be read by {recipe.base_model}, a model with an adapter; merge it "
            "into a checkpoint of its own first, or set gate_mode: random."
        )


def _routers(
    recipe: MixtureRecipe, base: PreTrainedConfig, folder: Path, device: str
) -> Float[Tensor, "layers experts hidden"]:
    every = recipe.every
    if recipe.random:
        return random_rows(
            base.num_hidden_layers, len(every), base.hidden_size,
            uniform=recipe.gate_mode == "uniform_random",
            generator=torch.Generator().manual_seed(recipe.seed),
        )  # fmt: skip
    prompts = [ExpertPrompts(e.positive_prompts or (), e.negative_prompts or ()) for e in every]
    return prompted_rows(prompts, recipe.gate_mode, folder, device=device)


def _notes(routers: Float[Tensor, "layers experts hidden"]) -> list[str]:
    alike = [n for n, rows in enumerate(routers) if torch.linalg.cond(rows.double()) > _ALIKE]
    if not alike:
        return []
    where = f"{len(alike)} of {len(routers)} layers ({', '.join(map(str, alike[:8]))})"
    return [f"the experts' prompts are much alike in {where}: some experts will hardly be chosen"]


@dataclass
class _Draft:
    """A mixture in the making."""

    recipe: MixtureRecipe
    target: MixtureTarget
    base: PreTrainedConfig
    shards: Mapping[ModelRef, Shards]
    plans: list[TensorPlan] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    changed: dict[str, Expert] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """The recipe's, or that of the base's embedding."""
        if self.recipe.dtype:
            found: torch.dtype = getattr(torch, self.recipe.dtype)
            return found
        return self._held[EMBEDDING].dtype

    @property
    def _held(self) -> Mapping[str, Held]:
        return self.shards[self.recipe.base_model].tensors

    def require_fitting(self, configs: Mapping[ModelRef, PreTrainedConfig]) -> None:
        """Refuse models whose FFNs are not of the base's kind and size."""
        problems = [] if EMBEDDING in self._held else [f"the base has no {EMBEDDING}"]
        shape = (self.base.intermediate_size, self.base.hidden_size)
        for ref, config in configs.items():
            if config.model_type not in self.target.dense:
                problems.append(
                    f"{ref} is of the family {config.model_type}, not of "
                    f"{', '.join(self.target.dense)}"
                )
                continue
            if config.hidden_act != self.base.hidden_act:
                problems.append(f"{ref} has {config.hidden_act}, the base {self.base.hidden_act}")
            if config.num_hidden_layers != self.base.num_hidden_layers:
                problems.append(
                    f"{ref} has {config.num_hidden_layers} layers, the base "
                    f"{self.base.num_hidden_layers}"
                )
            problems += self._misshapen(ref, shape)
        if problems:
            raise MergeError(
                "models cannot be experts of one mixture unless their FFNs are like the base's; "
                f"leave out, or replace, those that differ:{listed(problems)}"
            )

    def _misshapen(self, ref: ModelRef, shape: tuple[int, int]) -> list[str]:
        held = self.shards[ref].tensors
        for layer in range(self.base.num_hidden_layers):
            for part in _PARTS:
                name = _FFN.format(layer=layer, part=part)
                wanted = shape[::-1] if part == "down_proj" else shape
                found = held[name].shape if name in held else None
                if found != wanted:
                    lacks = "is missing" if found is None else f"is {list(found)}"
                    return [f"{ref}: {name} {lacks}, not {list(wanted)}"]
        return []

    def add_base(self) -> None:
        """Everything but the FFNs, and zero biases where the family has more than the base."""
        tied = self.base.tie_word_embeddings
        for name in self._held:
            copied = "lm_head.weight" if tied else ""
            if ".mlp." not in name and "rotary_emb." not in name and name != copied:
                self._copy(name, self.recipe.base_model, name)
        if self.base.model_type in self.target.zero_biases:
            width = head_width(self.base)
            heads = {"q": self.base.num_attention_heads, "k": self.base.num_key_value_heads}
            for layer in range(self.base.num_hidden_layers):
                for part, count in (heads | {"v": heads["k"]}).items():
                    name = f"model.layers.{layer}.self_attn.{part}_proj.bias"
                    self._give(name, torch.zeros(count * width))

    def add_experts(self) -> None:
        """The FFNs, routed and shared."""
        for layer in range(self.base.num_hidden_layers):
            for number, expert in enumerate(self.recipe.experts):
                self._add_expert(layer, f"experts.{number}", expert)
            for expert in self.recipe.shared_experts:
                self._add_expert(layer, "shared_expert", expert)

    def _add_expert(self, layer: int, place: str, expert: Expert) -> None:
        for part in _PARTS:
            name = self._place(layer, f"{place}.{self.target.names[part]}")
            self._copy(name, expert.source_model, _FFN.format(layer=layer, part=part))
            if expert.noise_scale or expert.residual_scale is not None:
                self.changed[name] = expert

    def add_routers(self, rows: Float[Tensor, "layers experts hidden"]) -> None:
        """The routers of all layers, and the gates of shared experts after the routed ones."""
        experts = len(self.recipe.experts)
        for layer, row in enumerate(rows):
            self._give(self._place(layer, "gate"), row[:experts].contiguous())
            if self.recipe.shared_experts:
                self._give(self._place(layer, "shared_expert_gate"), row[experts:].contiguous())

    def add_filler(self) -> None:
        """A shared expert that says nothing."""
        hidden = self.base.hidden_size
        for layer in range(self.base.num_hidden_layers):
            self._give(self._place(layer, "shared_expert_gate"), torch.zeros(1, hidden))
            for part in _PARTS:
                shape = (hidden, FILLER) if part == "down_proj" else (FILLER, hidden)
                self._give(self._place(layer, f"shared_expert.{part}"), torch.zeros(shape))

    def _place(self, layer: int, part: str) -> str:
        return f"model.layers.{layer}.{self.target.block}.{part}.weight"

    def _copy(self, name: str, ref: ModelRef, tensor: str) -> None:
        held = self.shards[ref].tensors[tensor]
        dtype = self.dtype if held.dtype.is_floating_point else held.dtype
        operand = Operand(ref, tensor, str(ref))
        self.plans.append(TensorPlan(name, held.shape, dtype, "copy", (operand,)))

    def _give(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor
        self.plans.append(TensorPlan(name, tuple(tensor.shape), self.dtype, "copy", ()))
