"""How many heads the attention of a layer has, and how wide they are."""

from dataclasses import dataclass

from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Heads:
    """The sizes of one attention; ``heads`` is a multiple of ``kv_heads``."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """How many query heads read one key and value head."""
        return self.heads // self.kv_heads


def layer_config(config: PreTrainedConfig, layer: int) -> PreTrainedConfig:
    """The text model's configuration with what one layer overrides."""
    own: PreTrainedConfig = config.get_text_config().per_layer_config[layer]
    return own


def heads_of(config: PreTrainedConfig, layer: int) -> Heads:
    """The sizes of the attention of a layer, as its configuration gives them."""
    own = layer_config(config, layer)
    heads: int = own.num_attention_heads
    return Heads(
        heads=heads,
        kv_heads=getattr(own, "num_key_value_heads", None) or heads,
        head_dim=getattr(own, "head_dim", None) or own.hidden_size // heads,
    )
