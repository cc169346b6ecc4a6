"""ROME: one fact is written into one layer as a change of rank one.

Source: Meng et al. 2022, Locating and Editing Factual Associations in GPT (arXiv:2202.05262).
Departures: the consistent variant of Gupta et al. 2024 (arXiv:2403.07175), where key and value
are means over the same prompts throughout; the keys of earlier edits are left alone, too; and see
``values`` and ``harm``.
"""

from collections.abc import Sequence

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from brickwork.update.harm import mean_square, rooms, too_harmful
from brickwork.update.keys import edit_path, norm_follows, recall, residual_scale
from brickwork.update.method import Draft, EditContext
from brickwork.update.rewrite import (
    DescentOptions,
    earlier_keys,
    low_rank_draft,
    placed_prompts,
    protected,
    rewritings,
    ridged,
    solved,
    unlearned,
)
from brickwork.update.values import Descent, Where, learn_values
from brickwork.update.words import EncodedFact


class RomeOptions(DescentOptions):
    """Options of ROME."""

    harm: float = Field(default=0.2, gt=0)
    """As for the other methods; more, for one layer bears all, and every fact that comes alone is
    written without weighing it against the others."""
    ridge: float = Field(default=1e-4, gt=0)
    """What is added to the covariance's diagonal, as a share of its mean."""


def draft_rome(context: EditContext, facts: Sequence[EncodedFact], options: RomeOptions) -> Draft:
    """The rank-one term that makes the last linear map of an FFN say a value at a key.

    The key is the mean of what the map reads at the site's token, over the prompt by itself and
    after the contexts; there the map says from now on what it said plus what was learned.

    Args:
        context: with the covariance of the site's last layer.
        facts: one.
        options: see there.

    Raises:
        EditError: if the layer is one of experts, or there is no such.
    """
    layer, model = context.site.layers[-1], context.loaded.model
    path = edit_path(model, layer)
    assert context.covariance is not None, "checked with the method's needs"
    prompts = placed_prompts(context, facts, options.contexts)
    descent = Descent(**options.model_dump(exclude={"contexts", "ridge", "harm"}))
    # Without a norm between the two, what is added to the FFN's output is added to the block's.
    where: Where = "ffn" if norm_follows(model, layer) else "block"
    learned = learn_values(
        model, layer, where, rewritings(context, facts, prompts), descent, advance=context.advance
    )
    (own,) = prompts
    found = recall(model, own, layer)
    key = found.keys.mean(0)
    corpus = context.covariance(layer).matrix.to(key.device).double()
    guarded = protected(ridged(corpus, options.ridge), earlier_keys(context, path, key.double()))
    A, B = rank_one(key, learned.delta[0], guarded)
    failures = unlearned(learned.nats)
    change = (B @ A).T * residual_scale(model, layer, found.values).mean(0)
    if mean_square(change, corpus) > rooms(context, own, [layer], options.harm)[layer]:
        failures = failures or {0: too_harmful(layer, options.harm)}
    return low_rank_draft({path: (A, B)}, {path: key[None]}, failures, facts=len(facts))


def rank_one(
    key: Float[Tensor, " neurons"],
    delta: Float[Tensor, " hidden"],
    covariance: Float[Tensor, "neurons neurons"],
) -> tuple[Float[Tensor, "1 neurons"], Float[Tensor, "hidden 1"]]:
    """Factors A and B with ``B A key = delta`` that say least about what the corpus reads.

    Args:
        key: what the map reads.
        delta: what it shall say more.
        covariance: second moments of what it reads in general, of full rank, in float64.
    """
    exact = key.double()
    direction = solved(covariance, exact[:, None]).squeeze(1)
    direction = direction / direction.norm()
    B = delta.double() / (exact @ direction)
    return direction[None], B[:, None]
