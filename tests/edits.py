"""How well an edit did, scored as the papers do, on models that forward hooks have changed.

Efficacy (ES) is the share of rewritten prompts whose new answer is likelier than the old one,
paraphrase (PS) that of other wordings, neighbourhood (NB) the share of prompts about others whose
own answer is still likelier than the new one; S is their harmonic mean. The strict forms ask for
the likeliest word of all instead. The first token of an answer stands for all of it, and all
values are in percent. Nothing here is shared with the measure of the package.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from string import ascii_letters

import torch
from torch import Tensor, nn

from brickwork.brick.brick import Brick
from brickwork.brick.effects import Add
from brickwork.brick.forms import effects_of
from brickwork.measure.grams import add_grams
from brickwork.model.load import LoadedModel
from brickwork.model.parts import part_of
from brickwork.model.train import Encoded
from brickwork.model.words import encode
from brickwork.update.facts import Fact, Probe
from brickwork.update.method import Covariance
from brickwork.update.words import answer_ids


@dataclass(frozen=True)
class Scores:
    """Shares in percent."""

    es: float
    ps: float
    nb: float
    es_strict: float
    ps_strict: float
    nb_strict: float
    same: float
    """Of other facts about the subjects whose answer is still the likeliest."""

    @property
    def s(self) -> float:
        """The harmonic mean of the lenient three."""
        parts = (self.es, self.ps, self.nb)
        return 0.0 if 0 in parts else 3 / sum(1 / part for part in parts)


def scores(loaded: LoadedModel, facts: Sequence[Fact], *, raw: bool = False) -> Scores:
    """Of the model as it is now."""
    rewritten = [(fact.prompt, fact.target, fact.target_true) for fact in facts]
    reworded = [(p, f.target, f.target_true) for f in facts for p in f.paraphrases]
    near = [(n.prompt, n.answer, f.target) for f in facts for n in f.neighbours]
    same = [(n.prompt, n.answer, n.answer) for f in facts for n in f.same_subject]
    es, ps, nb = (_shares(loaded, rows, raw=raw) for rows in (rewritten, reworded, near))
    strict = _shares(loaded, same, raw=raw)[1] if same else float("nan")
    return Scores(es[0], ps[0], nb[0], es[1], ps[1], nb[1], strict)


def answers(loaded: LoadedModel, probes: Sequence[Probe], *, raw: bool = False) -> float:
    """The share of probes whose answer is the likeliest, in percent."""
    return _shares(loaded, [(p.prompt, p.answer, p.answer) for p in probes], raw=raw)[1]


def _shares(
    loaded: LoadedModel, rows: Sequence[tuple[str, str, str]], *, raw: bool
) -> tuple[float, float]:
    """How often the first answer is likelier than the second, and how often the likeliest."""
    logits = next_logits(loaded, [prompt for prompt, _, _ in rows], raw=raw)
    wanted, other = (
        torch.tensor([answer_ids(loaded, row[0], row[i], raw=raw)[0] for row in rows])
        for i in (1, 2)
    )
    number = torch.arange(len(rows))
    more = logits[number, wanted] > logits[number, other]
    return 100 * float(more.double().mean()), 100 * float(
        (logits.argmax(1) == wanted).double().mean()
    )


@torch.no_grad()
def next_logits(loaded: LoadedModel, prompts: Sequence[str], *, raw: bool = False) -> Tensor:
    """What follows each prompt; prompts of equal length share a batch, without padding."""
    ids = encode(loaded, prompts, raw=raw)
    found: dict[int, Tensor] = {}
    for length in {len(one) for one in ids}:
        own = [number for number, one in enumerate(ids) if len(one) == length]
        batch = torch.tensor([ids[number] for number in own])
        logits = loaded.model(input_ids=batch, use_cache=False).logits[:, -1].float()
        found |= dict(zip(own, logits, strict=True))
    return torch.stack([found[number] for number in range(len(ids))])


@contextmanager
def edited(loaded: LoadedModel, *bricks: Brick) -> Iterator[None]:
    """Let LoRA bricks act through forward hooks, independently of the package's own way."""
    hooks = []
    for brick in bricks:
        for effect in effects_of(brick):
            assert isinstance(effect, Add)
            module = loaded.model.get_submodule(effect.site)
            hooks.append(module.register_forward_hook(_adding(effect)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _adding(effect: Add) -> Callable[..., Tensor]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        A, B = effect.A.to(output), effect.B.to(output)
        return output + effect.scaling * (args[0] @ A.T) @ B.T

    return hook


def covariance_of(
    loaded: LoadedModel, texts: Sequence[str], layers: Sequence[int]
) -> Callable[[int], Covariance]:
    """The second moments of what the layers' output projections read in the texts."""
    sequences = [Encoded(ids, 0) for ids in encode(loaded, texts, raw=True)]
    weights = {layer: part_of(loaded.model, "mlp.down", layer).weight for layer in layers}
    shapes = {layer: part_of(loaded.model, "mlp.down", layer) for layer in layers}
    sums = {}
    for layer, weight in weights.items():
        size = loaded.model.get_parameter(weight).shape[1 - shapes[layer].out_axis]
        sums[weight] = torch.zeros(size, size)
    add_grams(loaded.model, sequences, sums)
    tokens = sum(len(s.ids) for s in sequences)
    return lambda layer: Covariance(sums[weights[layer]] / tokens, tokens)


def identity_of(loaded: LoadedModel) -> Callable[[int], Covariance]:
    """As if all directions were read equally: what the covariance is compared with."""

    def identity(layer: int) -> Covariance:
        part = part_of(loaded.model, "mlp.down", layer)
        size = loaded.model.get_parameter(part.weight).shape[1 - part.out_axis]
        return Covariance(torch.eye(size), 1)

    return identity


def tiny_facts(loaded: LoadedModel, count: int) -> list[Fact]:
    """Facts for the tiny tokenizer, whose answer is the second likeliest of the letters.

    Not every answer is in the reach of one layer of a random model.
    """
    assert loaded.tokenizer is not None
    letters = {loaded.tokenizer.convert_tokens_to_ids(letter): letter for letter in ascii_letters}
    prompts = {subject: f"{subject} lives in " for subject in ("Ann Lee", "Bob Ray", "Cat Fox")}
    facts = []
    for subject, prompt in list(prompts.items())[:count]:
        logits = next_logits(loaded, [prompt], raw=True)[0]
        _, second, *_ = sorted(letters, key=lambda token: -float(logits[token]))
        facts.append(Fact(subject.lower(), subject, prompt, letters[second]))
    return facts
