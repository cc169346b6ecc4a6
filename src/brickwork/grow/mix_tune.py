"""Train the routers of a mixture of branches, and everything else if wished.

Sukhbaatar et al. 2024, Branch-Train-MiX (arXiv:2403.07816), the last of its three steps.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from brickwork.errors import ConfigurationError, DataError, GrowthError
from brickwork.measure.balance import balance_loss
from brickwork.measure.perplexity import TOKENS_PER_BATCH, token_mask
from brickwork.model.fit import FitRecipe, Report, fit, training_batches
from brickwork.model.parts import CausalModel, ffn_row_of, layers_of, role_path
from brickwork.model.train import Encoded, groups_by_length, pack

# A router's logits, the weights of the experts that it picked for each token, and which they are.
Routing = tuple[
    Float[Tensor, "tokens experts"], Float[Tensor, "tokens top_k"], Int[Tensor, "tokens top_k"]
]


def tune_mixture(
    model: CausalModel,
    sequences: Sequence[Encoded],
    recipe: FitRecipe,
    *,
    everything: bool = False,
    balance: float = 0.01,
    report: Report = lambda step, steps, loss: None,
) -> list[float]:
    """Train a mixture's routers on texts of all domains, in place and for good; the losses.

    Args:
        model: a mixture of the Mixtral kind (the router's softmax weighs the experts it picks), in
            float32.
        sequences: prompts with responses, of all domains.
        recipe: how it is trained.
        everything: whether all weights are trained, as in the paper, or routers alone, which leaves
            the experts what the branches were.
        balance: weight of the loss on uneven use of experts.
        report: called after each step with the step, the number of steps, and the loss.

    Raises:
        GrowthError: if the model has no router, or one that the loss does not reach.
        ConfigurationError: if it is not in float32.
        DataError: if there is nothing to train on.

    Source:
        Sukhbaatar et al. 2024, arXiv:2403.07816, section 2.3; balance: Fedus et al. 2021,
        arXiv:2101.03961, every layer by itself.
    """
    routers = routers_of(model)
    _require_tunable(model)
    kept: list[Bool[Tensor, " tokens"]] = []

    def batches() -> Iterator[Sequence[Encoded]]:
        for batch in training_batches(sequences, recipe):
            kept[:] = [token_mask(batch).flatten()]
            yield batch

    with watched_routers(model) as seen:

        def uneven() -> Tensor:
            layers = [balance_loss(raw, _chosen(raw, picked), kept[0]) for raw, _, picked in seen]
            seen.clear()
            return balance * torch.stack(layers).mean()

        trained = model.parameters() if everything else (r for m in routers for r in m.parameters())
        return fit(model, trained, batches(), recipe, penalty=uneven, report=report)


@torch.inference_mode()
def expert_weights(
    model: CausalModel, sequences: Sequence[Encoded]
) -> Float[Tensor, "layers experts"]:
    """How much each expert weighs for these texts: the mean over their tokens, prompts too.

    Args:
        model: a mixture; it is left as it is.
        sequences: texts, at least one token each.

    Returns:
        One row for each layer with experts; where weights are normalised, a row sums to 1.

    Raises:
        GrowthError: if the model has no router.
        DataError: if there is no text.
    """
    if not sequences:
        raise DataError("the experts' weights on 0 texts were asked for; give at least one.")
    found = []
    with watched_routers(model) as seen:
        for group in groups_by_length([len(s.ids) for s in sequences], TOKENS_PER_BATCH):
            batch = [sequences[i] for i in group]
            ids = pack(batch, pad=0, prompt_weight=0.0).ids.to(next(model.parameters()).device)
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
            mask = token_mask(batch).flatten()
            found.append(torch.stack([_weighed(*routing)[mask].sum(0) for routing in seen]))
            seen.clear()
    return torch.stack(found).sum(0) / sum(len(s.ids) for s in sequences)


def routers_of(model: CausalModel) -> list[nn.Module]:
    """The routers of a mixture, one for each layer with experts.

    Raises:
        GrowthError: if there is none.
    """
    layers = [
        layer for layer in range(layers_of(model)) if ffn_row_of(model, layer).form == "moe_gated"
    ]
    if not layers:
        raise GrowthError(
            f"the routers of this {model.config.model_type} model were asked for, and none of its "
            f"{layers_of(model)} layers has experts; mix branches first."
        )
    return [model.get_submodule(role_path(model, "mlp.router", n) or "") for n in layers]


@contextmanager
def watched_routers(model: CausalModel) -> Iterator[list[Routing]]:
    """Note how each router routes.

    Yields:
        A list that gets what every router says, in the order in which they run.
    """
    seen: list[Routing] = []
    with ExitStack() as stack:
        for router in routers_of(model):
            hook = router.register_forward_hook(lambda _router, _inputs, said: seen.append(said))
            stack.callback(hook.remove)
        yield seen


def _chosen(
    raw: Float[Tensor, "tokens experts"], picked: Int[Tensor, "tokens top_k"]
) -> Bool[Tensor, "tokens experts"]:
    return torch.zeros_like(raw, dtype=torch.bool).scatter(1, picked, True)


def _weighed(
    raw: Float[Tensor, "tokens experts"],
    weights: Float[Tensor, "tokens top_k"],
    picked: Int[Tensor, "tokens top_k"],
) -> Float[Tensor, "tokens experts"]:
    every = torch.zeros(raw.shape, dtype=torch.float64)
    return every.scatter(1, picked.cpu(), weights.double().cpu())


def _require_tunable(model: CausalModel) -> None:
    config: Any = model.config.get_text_config()
    # Mixtral has no such setting: it always normalises.
    if config.num_experts_per_tok == 1 and getattr(config, "norm_topk_prob", True):
        raise GrowthError(
            "routers were to be trained with 1 expert for each token, which then weighs 1 whatever "
            "the router says, so that the loss does not reach it; mix with 2 experts per token."
        )
    dtype = next(model.parameters()).dtype
    if dtype != torch.float32:
        raise ConfigurationError(
            f"routers are trained in float32, but this model is in {dtype}; load it in float32."
        )
