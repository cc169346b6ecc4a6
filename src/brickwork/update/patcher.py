"""T-Patcher: a neuron after the last block for every token that the model gets wrong.

Source: Huang et al. 2023, Transformer-Patcher (arXiv:2301.09785).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import cross_entropy, relu

from brickwork.measure.attribution import differentiable
from brickwork.model.parts import layers_of, role_path
from brickwork.update.continuation import Continuation
from brickwork.update.method import Draft, EditContext
from brickwork.update.others import other_relations, other_subjects, states_of_others
from brickwork.update.states import corpus_prompts, end_states, leads, told_facts
from brickwork.update.words import EncodedFact

_RIDGE = 0.01  # share of the mean variance: a direction that the memory never took is not free

_PER_TEXT, _TOKENS = 8, 64  # states of the memory from each text, and tokens that are read of it


class PatcherOptions(BaseModel):
    """What T-Patcher can be told."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    strongest: int = Field(default=8, ge=1)
    """A neuron starts to speak at the mean of the so many loudest states of the memory."""
    memory: int = Field(default=2048, ge=1)
    """States of the corpus to remember, at most."""
    alike: int = Field(default=16, ge=0)
    """Prompts to remember for each fact: so many about other subjects, and other relations."""
    steps: int = Field(default=200, ge=1)
    """Steps of Adam for the values, at most."""
    rate: float = Field(default=0.02, gt=0)
    """Learning rate, in units of the size of the states."""
    lead: float = Field(default=4.0, ge=0)
    """The logit of every token of the answers shall lead all others by so much."""


@dataclass(frozen=True, eq=False)
class Patches:
    """Neurons after a block."""

    key: Float[Tensor, "neurons hidden"]
    bias: Float[Tensor, " neurons"]
    value: Float[Tensor, "neurons hidden"]

    def after(self, states: Float[Tensor, "rows tokens hidden"]) -> Tensor:
        """The states and what the neurons add to them."""
        return states + relu(states @ self.key.T + self.bias) @ self.value

    def rows(self, kept: Sequence[int]) -> "Patches":
        """Some of the neurons."""
        rows = list(kept)
        return Patches(self.key[rows], self.bias[rows], self.value[rows])


@dataclass(frozen=True, eq=False)
class Memory:
    """States for which neurons shall be silent.

    Attributes:
        states: what the block hands on there.
        fact: whose neurons shall be; -1: all.
    """

    states: Float[Tensor, "memory hidden"]
    fact: Int[Tensor, " memory"]


def draft_patches(
    context: EditContext, facts: Sequence[EncodedFact], options: PatcherOptions
) -> Draft:
    """Neurons that make the model say the facts' answers, and are silent for the memory.

    The memory is the corpus and, for each fact, its prompt about other subjects and other
    relations of its subject. A fact fails if the model tells its answer already, or if its
    neurons, which say 1 at its own tokens, cannot be silent there or do not make it do so.

    Source:
        Huang et al. 2023, arXiv:2301.09785. Departures: the neurons stand after the block, not in
        its FFN, so that every family can have them; their keys and biases, which the paper trains
        by margins between a token and the memory, are the linear discriminant between them; and
        the values of all facts are trained at once.
    """
    layer = context.site.layers[-1]
    training = _Training(context, facts)
    memory = remembered(context, facts, options)
    asked, free = training.asked[training.wrong], training.may_speak(memory)
    key, bias, parted = discriminants(asked, memory.states, free, options.strongest)
    # Later tokens of an answer can be told alike about everyone; then the corpus alone counts.
    free |= ~parted & (memory.fact[:, None] >= 0)
    key, bias, parted = discriminants(asked, memory.states, free, options.strongest)
    patches = training.run(key, bias, options)
    owner = training.batch.row[training.wrong].tolist()
    failures: dict[int, str] = {}
    for number, fact in enumerate(facts):
        own = [row for row, other in enumerate(owner) if other == number]
        if not own:
            failures[number] = f"the model answers {fact.fact.target!r} already."
        elif not all(parted[row] for row in own):
            failures[number] = (
                f"what block {layer} hands on at its tokens looks like the memory; name another "
                "layer, or leave what is like it out of the corpus."
            )
    kept = [row for row, number in enumerate(owner) if number not in failures]
    # Neurons of a fact that fails go, and may have helped another: until all that stay do alone.
    while lost := {owner[row] for row in kept} - training.tells(patches.rows(kept)):
        for number in lost:
            failures[number] = (
                f"{owner.count(number)} neurons after block {layer} did not make the model answer "
                f"{facts[number].fact.target!r} within {options.steps} steps."
            )
        kept = [row for row in kept if owner[row] not in lost]
    context.advance(len(facts))
    taught = [number for number in range(len(facts)) if number not in failures]
    site = role_path(context.loaded.model, "block", layer)
    return Draft(
        form="patch",
        tensors={f"{site}/{slot}": r.cpu() for slot, r in vars(patches.rows(kept)).items()},
        owners=tuple(taught.index(owner[row]) for row in kept),
        failures=failures,
    )


def remembered(
    context: EditContext, facts: Sequence[EncodedFact], options: PatcherOptions
) -> Memory:
    """The corpus, where answers begin and at random tokens, and for each fact what is like it."""
    model, layer = context.loaded.model, context.site.layers[-1]
    generator = torch.Generator().manual_seed(context.seed)
    prompts = corpus_prompts(context.corpus, texts=-(-options.memory // _PER_TEXT), tokens=_TOKENS)
    rows = end_states(model, layer, prompts, [len(ids) for ids in prompts], after=True)
    last, inside = torch.stack([row[-1] for row in rows]), torch.cat([row[:-1] for row in rows])
    chosen = torch.randperm(len(inside), generator=generator)[: options.memory - len(last)]
    common = torch.cat([last, inside[chosen.to(inside.device)]])
    likes = [
        other_subjects(context, facts, fact, options.alike)
        + other_relations(context, facts, fact, options.alike)
        for fact in facts
    ]
    own = [states.flatten(0, 1) for states in states_of_others(context, likes, facts, after=True)]
    whose = torch.tensor([-1] * len(common) + [n for n, part in enumerate(own) for _ in part])
    return Memory(torch.cat([common, *own]), whose.to(common.device))


def discriminants(
    asked: Float[Tensor, "neurons hidden"],
    memory: Float[Tensor, "memory hidden"],
    free: Bool[Tensor, "memory neurons"],
    strongest: int,
) -> tuple[Float[Tensor, "neurons hidden"], Float[Tensor, " neurons"], Bool[Tensor, " neurons"]]:
    """Keys and biases by which each neuron says 1 at its own state, and at most 0 in the memory.

    Args:
        asked: each neuron's own state.
        memory: states that shall be silent.
        free: where a neuron may speak all the same.
        strongest: the mean of so many loudest states of the memory is where a neuron starts.

    Returns:
        Keys, biases, and for which neurons there are such; others have a bias that silences them.
    """
    own, rest = asked.double(), memory.double()
    mean = rest.mean(0)
    covariance = (rest - mean).T @ (rest - mean) / len(rest)
    covariance.diagonal().add_(_RIDGE * covariance.diagonal().mean())
    direction = torch.linalg.solve(covariance, (own - mean).T)  # hidden neurons
    said = (rest @ direction).masked_fill(free, -torch.inf)
    loudest = said.topk(min(strongest, len(said)), dim=0).values
    counted = loudest.isfinite()
    start = loudest.where(counted, 0.0).sum(0) / counted.sum(0).clamp_min(1)
    margin = (own * direction.T).sum(1) - start
    parted = margin > 0
    scale = torch.where(parted, 1 / margin.clamp_min(torch.finfo(margin.dtype).tiny), 0.0)
    return (direction * scale).T.float(), (-start * scale).float(), parted


class _Training:
    """The values of some facts' neurons while they are trained."""

    def __init__(self, context: EditContext, facts: Sequence[EncodedFact]) -> None:
        self.model, layer = context.loaded.model, context.site.layers[-1]
        self.batch = told_facts(facts, context.loaded.device)
        # After the last block no token sees another, so nothing before the spots matters.
        last = layer == layers_of(self.model) - 1
        starts = self.batch.starts if last else [0] * len(facts)
        skipped = torch.tensor(self.batch.starts, device=context.loaded.device) * (not last)
        self.ends = Continuation(self.model, self.batch.sequences, starts, first=layer + 1)
        self.spots = (self.batch.row, self.batch.position + skipped[self.batch.row])
        self.states = self.ends.states.float()
        self.asked = self.states[self.spots]
        self.wrong = (leads(self._say(self.states), self.batch.token) <= 0).nonzero().squeeze(1)

    def may_speak(self, memory: Memory) -> Bool[Tensor, "memory neurons"]:
        """The states of the memory that are for other facts' neurons."""
        owner = self.batch.row[self.wrong]
        return (memory.fact[:, None] >= 0) & (memory.fact[:, None] != owner)

    @torch.enable_grad()
    def run(
        self,
        key: Float[Tensor, "neurons hidden"],
        bias: Float[Tensor, " neurons"],
        options: PatcherOptions,
    ) -> Patches:
        """The neurons with their values."""
        size = self.asked.pow(2).mean().sqrt()
        # A token without a neuron is told by the model itself, by whatever lead.
        enough = torch.zeros_like(self.batch.token, dtype=size.dtype)
        enough[self.wrong] = options.lead
        value = torch.zeros_like(key, requires_grad=True)
        optimizer = torch.optim.Adam([value], lr=options.rate)

        def say() -> Float[Tensor, "spots vocabulary"]:
            return self._say(Patches(key, bias, size * value).after(self.states))

        with differentiable(self.model):
            for _ in range(options.steps if len(key) else 0):
                logits = say()
                done = self.batch.every(leads(logits.detach(), self.batch.token) >= enough)
                if done.all():
                    break
                running = ~done[self.batch.row]
                loss = cross_entropy(logits[running], self.batch.token[running], reduction="sum")
                (value.grad,) = torch.autograd.grad(loss, [value])
                before = value.detach().clone()
                optimizer.step()
                with torch.no_grad():
                    value.copy_(torch.where(running[self.wrong, None], value, before))
        return Patches(key, bias, (size * value).detach())

    @torch.no_grad()
    def tells(self, patches: Patches) -> set[int]:
        """The facts whose answers the model tells with these neurons."""
        led = leads(self._say(patches.after(self.states)), self.batch.token) > 0
        return set(self.batch.every(led).nonzero().flatten().tolist())

    def _say(self, states: Float[Tensor, "rows tokens hidden"]) -> Tensor:
        """The logits at the spots."""
        return self.ends.logits(states.to(self.ends.states.dtype), *self.spots)
