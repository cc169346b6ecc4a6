"""A model of two: the first blocks of one, a linear map, and the last blocks of another.

Each half is a plain model of its own family with fewer layers, which shares its weights with the
model that it was taken from. So positions, masks and caches are each family's own, and only the
residual stream goes over.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import CausalLMOutputWithPast

from brickwork.errors import ConfigurationError, ModelError
from brickwork.model.carve import Kept, carved_outline
from brickwork.model.config import transformers_at
from brickwork.model.cost import token_flops
from brickwork.model.load import LoadedModel
from brickwork.model.parts import find_module, layers_of, role_path, row_of
from brickwork.model.taps import tapped


class StitchedConfig(PreTrainedConfig):
    """What generation asks of a model's configuration; nothing that a model could be built from."""

    model_type = "brickwork_stitched"


class JointCache(Cache):
    """The keys and values of both halves; each half reads and writes its own."""

    def __init__(self, front: PreTrainedConfig, back: PreTrainedConfig) -> None:
        self.front, self.back = DynamicCache(config=front), DynamicCache(config=back)
        super().__init__(layers=[*self.front.layers, *self.back.layers])


class StitchedModel(PreTrainedModel, GenerationMixin):
    """The front model's embedding and first blocks, a map, the back model's blocks and head.

    It gives logits and losses, and generates, as any causal language model of transformers. It
    cannot be saved as a checkpoint.

    Args:
        front: a model with the first blocks only; what follows them is there but is not computed,
            apart from the final norm.
        stitch: from the width of the front to that of the back.
        back: a model with the last blocks only.
    """

    config_class = StitchedConfig
    _supports_sdpa = True

    def __init__(self, front: PreTrainedModel, stitch: nn.Linear, back: PreTrainedModel) -> None:
        own, first = back.config.get_text_config(), front.config.get_text_config()
        limits = [getattr(c, "max_position_embeddings", None) for c in (first, own)]
        config: Any = StitchedConfig()
        config.update(
            {
                "eos_token_id": own.eos_token_id,
                "bos_token_id": first.bos_token_id,
                "pad_token_id": own.pad_token_id,
                "vocab_size": own.vocab_size,
                "num_hidden_layers": layers_of(front) + layers_of(back),
                "max_position_embeddings": min((n for n in limits if n), default=None),
            }
        )
        super().__init__(config)
        self.front, self.stitch, self.back = front, stitch, back
        self.generation_config = copy.deepcopy(back.generation_config)
        self.train(False)

    def get_input_embeddings(self) -> nn.Module:
        """Those of the front."""
        embedding: nn.Module = self.front.get_input_embeddings()
        return embedding

    def get_output_embeddings(self) -> nn.Module:
        """The head of the back."""
        head: nn.Module = self.back.get_output_embeddings()
        return head

    def forward(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **asked: Any,
    ) -> CausalLMOutputWithPast:
        """As every causal language model; ``asked`` (labels, logits_to_keep) goes to the back.

        Raises:
            ConfigurationError: if the cache is another model's.
        """
        cache = self._joint(past_key_values) if use_cache else None
        shared = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "use_cache": bool(use_cache),
        }
        held: list[Tensor] = []
        with tapped(self.front, blocks={layers_of(self.front) - 1: lambda _, s: held.append(s)}):
            self.front.base_model(
                input_ids=input_ids, past_key_values=cache and cache.front, **shared
            )
        states = self.stitch(held[0].to(self.stitch.weight.dtype)).to(self.back.dtype)
        width = _table(self.back.get_input_embeddings()).shape[1]
        with _entering(self.back, states):
            output = self.back(
                inputs_embeds=states.new_zeros(*states.shape[:2], width),
                past_key_values=cache and cache.back,
                **shared,
                **asked,
            )
        return CausalLMOutputWithPast(loss=output.loss, logits=output.logits, past_key_values=cache)

    def _joint(self, cache: Cache | None) -> JointCache:
        """The cache that goes on; an empty one, as generation hands out, gives way to ours."""
        if isinstance(cache, JointCache):
            return cache
        if cache is not None and cache.get_seq_length():
            raise ConfigurationError(
                f"a stitched model was given a {type(cache).__name__} that holds "
                f"{cache.get_seq_length()} positions, which are not of both its halves; give the "
                "cache that it returned, or none."
            )
        return JointCache(self.front.config, self.back.config)

    def save_pretrained(self, *_args: Any, **_options: Any) -> None:
        """Refused, for no family's checkpoint can hold the map.

        Raises:
            ModelError: always, with the reason.
        """
        raise ModelError(
            "a stitched model was to be written as a checkpoint, but its map cannot be folded into "
            "the weights beside it: the residual stream goes around every block, and norms read it "
            "before any weight does; keep the maps with write_stitched, and the two models as "
            "they are."
        )

    def parameter_count(self) -> int:
        """Numbers that must be kept to run it: not the front's head, not the back's embedding."""
        unused = [
            (self.front, "final_norm"), (self.front, "unembed"),
            (self.back, "embed"), (self.back, "positions"),
        ]  # fmt: skip
        kept = {_table(self.get_input_embeddings()), _table(self.get_output_embeddings())}
        idle = {
            parameter
            for model, role in unused
            for parameter in _parameters_of(model, role)
            if parameter not in kept
        }
        return sum(p.numel() for p in self.parameters() if p not in idle)

    def token_flops(self) -> int:
        """Operations for a token, counted as in ``cost.token_flops``; the map's are included."""
        head = sum(p.numel() for p in _parameters_of(self.front, "unembed") if p.dim() == 2)
        halves = token_flops(self.front) + token_flops(self.back)
        return halves + 2 * (self.stitch.weight.numel() - head)


def stitch_models(
    front: LoadedModel,
    back: LoadedModel,
    *,
    blocks: tuple[int, int],
    weight: Float[Tensor, "back_hidden front_hidden"],
    bias: Float[Tensor, " back_hidden"],
) -> StitchedModel:
    """Join two models; both stay as they are, and no weight of theirs is copied.

    Args:
        front: gives the embedding and its first blocks.
        back: gives its last blocks, the final norm and the head.
        blocks: how many blocks of the front come first, and the number of the back's block that
            comes next.
        weight: of the map between them, which computes in its own dtype.
        bias: of that map.

    Returns:
        A model without anything to train.

    Raises:
        ModelError: if a family's configuration cannot say that there are fewer layers.
    """
    first, after = blocks
    stitch = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    stitch.weight = nn.Parameter(weight.detach().to(front.device), requires_grad=False)
    stitch.bias = nn.Parameter(bias.detach().to(front.device), requires_grad=False)
    return StitchedModel(
        span(front, range(first)), stitch, span(back, range(after, layers_of(back.model)))
    )


def span(loaded: LoadedModel, layers: Sequence[int]) -> PreTrainedModel:
    """The model with some of its layers only, frozen; it reads the weights of the whole one.

    Raises:
        ModelError: if the family's configuration cannot say that there are fewer layers.
    """
    model = loaded.model
    config = carved_outline(loaded, Kept(layers=tuple(layers))).config
    with (
        torch.random.fork_rng(devices=[]),
        no_init_weights(),
        transformers_at(f"make a {config.model_type} of {len(layers)} layers"),
    ):
        part: Any = AutoModelForCausalLM.from_config(
            config, dtype=loaded.dtype, attn_implementation=None, experts_implementation=None
        )
    blocks, state = row_of(model).blocks, model.state_dict()
    numbers = {f"{blocks}.{new}.": f"{blocks}.{old}." for new, old in enumerate(layers)}
    part.load_state_dict(
        {name: state[_renamed(name, numbers)] for name in part.state_dict()}, assign=True
    )
    part.tie_weights()
    part.to(loaded.device)  # what follows from the configuration is there, not in the state
    part.generation_config = copy.deepcopy(model.generation_config)
    frozen: PreTrainedModel = part.eval().requires_grad_(False)
    return frozen


def _table(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight


def _renamed(name: str, numbers: dict[str, str]) -> str:
    for new, old in numbers.items():
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def _parameters_of(model: PreTrainedModel, role: str) -> list[nn.Parameter]:
    module = find_module(model, role_path(model, role, None))
    return [] if module is None else list(module.parameters())


@contextmanager
def _entering(
    model: PreTrainedModel, states: Float[Tensor, "rows tokens hidden"]
) -> Iterator[None]:
    """The first block reads these states, whatever the embedding says."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (states, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": states}

    block = model.get_submodule(role_path(model, "block", 0) or "")
    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
