"""How evenly the experts of a layer are used."""

from jaxtyping import Bool, Float
from torch import Tensor


def balance_loss(
    logits: Float[Tensor, "tokens experts"],
    chosen: Bool[Tensor, "tokens experts"],
    kept: Bool[Tensor, " tokens"],
) -> Float[Tensor, ""]:
    """How unevenly the experts of a layer are used; ``top_k`` if all are used alike.

    Args:
        logits: of the router.
        chosen: the experts of each token.
        kept: False for padding.

    Source:
        Fedus et al. 2021, Switch Transformers (arXiv:2101.03961), equations 4 to 6, with several
        experts for each token as in transformers.
    """
    kept = kept.to(logits.device)
    share, used = logits.softmax(1)[kept].mean(0), chosen[kept].float().mean(0)
    return logits.shape[1] * (used * share).sum()
