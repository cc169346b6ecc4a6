"""What the methods that write values at keys have in common: prompts, and the drafts they make."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from brickwork.update.contexts import Placed, essence, prompts_in_contexts, sample_contexts
from brickwork.update.method import Draft, EditContext
from brickwork.update.values import Rewriting
from brickwork.update.words import EncodedFact

# An answer with a smaller probability than this, per token, has not been learned.
_LEAST = 0.05


class DescentOptions(BaseModel):
    """How the values that an edit writes are learned."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    contexts: int = Field(default=3, ge=0)
    """Short texts that the model writes itself, before each of which the edit shall hold, too."""
    steps: int = Field(default=25, ge=1)
    """The most steps of gradient descent."""
    lr: float = Field(default=1.0, gt=0)
    """Learning rate of Adam, in root mean squares of what the layer says."""
    enough: float = Field(default=0.05, gt=0)
    """Nats per token of the answer at which a fact counts as learned."""
    decay: float = Field(default=0.5, ge=0)
    """Weighs the length of what is added."""
    preserve: float = Field(default=0.0625, ge=0)
    """Weighs how far what the model says of the subject in general may drift."""
    clamp: float = Field(default=2.0, gt=0)
    """The greatest length of what is added, in lengths of what the block says (for rome, of what
    the FFN says where a norm follows it)."""
    harm: float = Field(default=0.11, gt=0)
    """How much all edits of a layer may change what it says about anything else: the root mean
    square over the corpus, in lengths of what the block says at the facts. Facts that would need
    more are left out and told."""


def placed_prompts(
    context: EditContext, facts: Sequence[EncodedFact], count: int
) -> list[list[Placed]]:
    """For each fact its prompt by itself, then after texts that the model writes."""
    contexts = sample_contexts(
        context.loaded,
        count,
        starts=[fact.prompt.ids for fact in facts],
        raw=context.raw,
        seed=context.seed,
    )
    return [
        prompts_in_contexts(context.loaded, fact, contexts, context.site.place, raw=context.raw)
        for fact in facts
    ]


def rewritings(
    context: EditContext, facts: Sequence[EncodedFact], prompts: Sequence[Sequence[Placed]]
) -> list[Rewriting]:
    """The prompts that shall be answered anew, and for each fact one that shall not."""
    found = []
    for number, (fact, own) in enumerate(zip(facts, prompts, strict=True)):
        found += [Rewriting(number, one.ids, one.position, fact.target) for one in own]
        kept = essence(context.loaded, fact, context.site.place, raw=context.raw)
        found.append(Rewriting(number, kept.ids, kept.position))
    return found


def unlearned(nats: Float[Tensor, " facts"]) -> dict[int, str]:
    """The facts whose answer stays unlikely, and why."""
    return {
        number: f"the answer got the probability {likely:.2g} per token where {_LEAST} is wanted; "
        "try another layer or place, or more steps."
        for number, likely in enumerate(nats.neg().exp().tolist())
        if likely < _LEAST
    }


def earlier_keys(context: EditContext, path: str, like: Tensor) -> Float[Tensor, "keys neurons"]:
    """The keys of edits that act already at a linear map, on a tensor's device in its dtype."""
    return context.earlier.get(path, like.new_zeros(0, like.shape[-1])).to(like)


def low_rank_draft(
    factors: Mapping[str, tuple[Tensor, Tensor]],
    keys: Mapping[str, Float[Tensor, "facts in"]],
    failures: Mapping[int, str],
    *,
    facts: int,
) -> Draft:
    """A LoRA that adds ``B A x``, one row of A and one column of B for each fact."""
    tensors = {}
    for path, (A, B) in factors.items():
        tensors[f"{path}/A"] = A.float().contiguous().cpu()
        tensors[f"{path}/B"] = B.float().contiguous().cpu()
    return Draft(
        form="lora",
        tensors=tensors,
        options={"alpha": float(facts)},
        owners=tuple(range(facts)),
        keys={path: key.float().cpu() for path, key in keys.items()},
        failures=failures,
    )


def protected(
    covariance: Float[Tensor, "neurons neurons"], earlier: Float[Tensor, "keys neurons"]
) -> Float[Tensor, "neurons neurons"]:
    """The covariance where each key of an earlier edit counts as much as the whole corpus.

    Source: Fang et al. 2024 (arXiv:2410.02355), 3.2; there for AlphaEdit alone.
    """
    return covariance + earlier.T @ earlier


def solved(
    matrix: Float[Tensor, "neurons neurons"], right: Float[Tensor, "neurons facts"]
) -> Float[Tensor, "neurons facts"]:
    """What the symmetric positive matrix maps to the right side, in float64."""
    factor = torch.linalg.cholesky(matrix)
    return torch.cholesky_solve(right, factor)


def ridged(
    matrix: Float[Tensor, "neurons neurons"], ridge: float
) -> Float[Tensor, "neurons neurons"]:
    """The matrix in float64, with a share of its mean diagonal added to the diagonal."""
    exact = matrix.double()
    return exact + ridge * exact.diagonal().mean() * torch.eye(
        len(exact), dtype=exact.dtype, device=exact.device
    )
