"""Fine-tuning of one linear map on the facts, with a bound on the norm of the change.

Source: Zhu et al. 2020, Modifying Memories in Transformer Models (arXiv:2012.00363). Departures:
the bound is on the Frobenius norm, not on each entry. And the change is of low rank: as long as
nothing below changes, the gradient of the map's weight lies in the span of what the map reads, so
the change is ``B A``, where A is an orthonormal basis of the leading directions of what it reads
in the facts, and B is trained by Adam.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from brickwork.measure.attribution import differentiable, gradient_budget
from brickwork.model.parts import CausalModel
from brickwork.model.train import groups_by_length
from brickwork.update.contexts import Placed
from brickwork.update.continuation import Continuation
from brickwork.update.keys import edit_path, recall
from brickwork.update.method import Draft, EditContext
from brickwork.update.rewrite import placed_prompts, unlearned
from brickwork.update.words import EncodedFact


class FinetuneOptions(BaseModel):
    """Options of fine-tuning."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    contexts: int = Field(default=0, ge=0)
    """Short texts that the model writes itself, after which the facts are trained, too."""
    steps: int = Field(default=60, ge=1)
    """The most steps of gradient descent."""
    bound: float = Field(default=2.0, gt=0)
    """The greatest norm of the change, as a share of the weight's norm."""
    lr: float = Field(default=0.1, gt=0)
    """Learning rate of Adam: the norm of a first step, as a share of the bound."""
    enough: float = Field(default=0.05, gt=0)
    """Nats per token of the answers, on the mean, at which training stops."""
    rank: int = Field(default=128, ge=1)
    """The most directions of what the map reads that the change may use."""


def draft_finetune(
    context: EditContext, facts: Sequence[EncodedFact], options: FinetuneOptions
) -> Draft:
    """A low-rank change of the last linear map of an FFN that makes the answers likely.

    Args:
        context: the site's last layer is trained.
        facts: any number.
        options: see there.

    Raises:
        EditError: if the layer is one of experts, or there is no such.
    """
    layer, model = context.site.layers[-1], context.loaded.model
    path = edit_path(model, layer)
    prompts = placed_prompts(context, facts, options.contexts)
    with differentiable(model):
        training = _Training(model, layer, facts, prompts)
        A = leading_directions(training.inputs(), options.rank)
        bound = options.bound * float(model.get_parameter(f"{path}.weight").float().norm())
        B, nats = training.run(A, bound, options)
    failures = unlearned(nats)
    kept = [own[0] for number, own in enumerate(prompts) if number not in failures]
    keys = {path: recall(model, kept, layer).keys.cpu()} if kept else {}
    tensors = {f"{path}/A": A.contiguous().cpu(), f"{path}/B": B.contiguous().cpu()}
    return Draft("lora", tensors, options={"alpha": float(len(A))}, keys=keys, failures=failures)


def leading_directions(
    inputs: Float[Tensor, "positions neurons"], rank: int
) -> Float[Tensor, "rank neurons"]:
    """An orthonormal basis of what is read most, of at most so many directions."""
    values, vectors = torch.linalg.eigh(inputs.double().T @ inputs.double())
    least = values[-1] * inputs.shape[1] * torch.finfo(torch.float32).eps
    there = min(rank, int((values > least).sum()))
    basis: Tensor = vectors[:, -there:].T.flip(0).float()
    return basis


class _Training:
    """The passes over all prompts of all facts, in batches."""

    def __init__(
        self,
        model: CausalModel,
        layer: int,
        facts: Sequence[EncodedFact],
        prompts: Sequence[Sequence[Placed]],
    ) -> None:
        rows = [
            (number, one.ids, fact.target, 1 / len(own))
            for number, (fact, own) in enumerate(zip(facts, prompts, strict=True))
            for one in own
        ]
        self.facts, self.down = len(facts), model.get_submodule(edit_path(model, layer))
        lengths = [len(ids) + len(target) for _, ids, target, _ in rows]
        self.batches = [
            _Batch(model, layer, [rows[i] for i in group])
            for group in groups_by_length(lengths, gradient_budget(model))
        ]

    @torch.no_grad()
    def inputs(self) -> Float[Tensor, "positions neurons"]:
        """What the map reads at all tokens of the facts."""
        seen: list[Tensor] = []
        hook = self.down.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        try:
            for batch in self.batches:
                batch.nats()
        finally:
            hook.remove()
        return torch.cat(
            [
                x.flatten(0, -2)[batch.ends.mask.flatten()].float()
                for x, batch in zip(seen, self.batches, strict=True)
            ]
        )

    @torch.enable_grad()
    def run(
        self, A: Float[Tensor, "rank neurons"], bound: float, options: FinetuneOptions
    ) -> tuple[Float[Tensor, "hidden rank"], Float[Tensor, " facts"]]:
        """The trained B, and the nats of each fact that were reached."""
        hidden = self.batches[0].hidden
        B = torch.zeros(hidden, len(A), device=A.device, requires_grad=True)
        adam = torch.optim.Adam([B], lr=options.lr * bound / B.numel() ** 0.5)

        def add(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + (args[0].float() @ A.T @ B.T).to(output.dtype)

        hook = self.down.register_forward_hook(add)
        try:
            for taken in range(options.steps + 1):
                nats = torch.zeros(self.facts, device=A.device)
                slope = torch.zeros_like(B)
                for batch in self.batches:
                    found = batch.nats()
                    nats.index_add_(0, batch.fact, found.detach())
                    slope += torch.autograd.grad(found.sum(), [B])[0] / self.facts
                if taken == options.steps or nats.mean() < options.enough:
                    break
                B.grad = slope
                adam.step()
                with torch.no_grad():
                    B.mul_((bound / B.norm()).clamp_max(1))
        finally:
            hook.remove()
        return B.detach(), nats


class _Batch:
    """Some prompts with their answers; blocks below the trained one were run once."""

    def __init__(
        self,
        model: CausalModel,
        layer: int,
        rows: Sequence[tuple[int, tuple[int, ...], tuple[int, ...], float]],
    ) -> None:
        ids = [(*prompt, *target[:-1]) for _, prompt, target, _ in rows]
        self.ends = Continuation(model, ids, [0] * len(rows), first=layer)
        self.hidden = model.config.get_text_config().hidden_size
        device = self.ends.mask.device
        wanted = [
            (row, len(prompt) - 1 + i, token, weight / len(target), fact)
            for row, (fact, prompt, target, weight) in enumerate(rows)
            for i, token in enumerate(target)
        ]
        columns = [torch.tensor(column, device=device) for column in zip(*wanted, strict=True)]
        self.row, self.position, self.token, self.share, self.fact = columns

    def nats(self) -> Float[Tensor, " chosen"]:
        """The loss of each token of the answers, in its share of its fact's mean."""
        logits = self.ends.logits(self.ends.states, self.row, self.position)
        return cross_entropy(logits, self.token, reduction="none") * self.share
