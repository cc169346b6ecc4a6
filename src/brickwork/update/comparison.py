"""Two models' answers to the same questions, as the measures of an evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from brickwork.measure.intervals import per_token, perplexity_increase, resample_counts
from brickwork.measure.perplexity import Losses
from brickwork.measure.results import Interval
from brickwork.update.evaluation_results import (
    GROUPS,
    FactOutcome,
    Fluency,
    Kept,
    Measured,
    Overall,
    PerplexityChange,
    Prompted,
)
from brickwork.update.facts import Fact
from brickwork.update.measures import fact_means, mean_interval, score_interval, share_interval
from brickwork.update.questions import Kind, Question

_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Answered:
    """How one model answers the questions.

    Attributes:
        nats: minus the log probability of the right answer for each of its tokens.
        rival: the same of the rival; NaN where there is none.
        said: whether the model would say the right answer.
        tokens: share of the right answer's tokens that are the likeliest.
    """

    nats: Float[Tensor, " questions"]
    rival: Float[Tensor, " questions"]
    said: Bool[Tensor, " questions"]
    tokens: Float[Tensor, " questions"]

    @property
    def likelier(self) -> Bool[Tensor, " questions"]:
        """Whether the right answer is likelier than the rival."""
        return self.nats < self.rival

    @property
    def margin(self) -> Float[Tensor, " questions"]:
        """By how much its probability for each token is higher."""
        return (-self.nats).exp() - (-self.rival).exp()


@dataclass(frozen=True, eq=False)
class Comparison:
    """The questions with the answers of two models.

    Attributes:
        questions: what was asked.
        before: how it is answered without the edits.
        after: how with them.
        left_out: how much of each kind was not asked.
        seed: of the intervals.
    """

    questions: Sequence[Question]
    before: Answered
    after: Answered
    left_out: Mapping[Kind, int]
    seed: int = 0

    def of(self, kind: Kind) -> Bool[Tensor, " questions"]:
        """Which questions are of the kind."""
        return torch.tensor([question.kind == kind for question in self.questions])

    @property
    def fact(self) -> Int[Tensor, " questions"]:
        """The number of the fact of each question."""
        return torch.tensor([question.fact for question in self.questions])

    def generator(self) -> torch.Generator:
        """Equal chance for everything, so that what is compared stays paired."""
        return torch.Generator().manual_seed(self.seed)


_Interval = Callable[[Float[Tensor, " facts"]], Interval]


def compare_prompts(pair: Comparison, kind: Kind) -> Prompted:
    """The measures of the prompts of one kind."""
    own = pair.of(kind)
    rivalled = own & ~pair.before.rival.isnan()

    def measured(
        which: Tensor, value: Callable[[Answered], Tensor], interval: _Interval
    ) -> Measured | None:
        if not bool(which.any()):
            return None
        fact = pair.fact[which]
        before, after = (
            interval(fact_means(value(seen)[which], fact)) for seen in (pair.before, pair.after)
        )
        return Measured(
            facts=len(fact.unique()), prompts=int(which.sum()), before=before, after=after
        )

    return Prompted(
        lenient=measured(rivalled, lambda seen: seen.likelier, share_interval),
        magnitude=measured(
            rivalled, lambda seen: seen.margin, lambda x: mean_interval(x, pair.generator())
        ),
        strict=measured(own, lambda seen: seen.said, share_interval),
        tokens=measured(own, lambda seen: seen.tokens, share_interval),
        without_rival=int((own & ~rivalled).sum()),
        left_out=pair.left_out.get(kind, 0),
    )


def kept_answers(pair: Comparison, kind: Kind) -> Kept:
    """What of one kind was answered rightly before, and still is."""
    own = pair.of(kind)
    right = own & pair.before.said
    share = None
    if bool(right.any()):
        share = share_interval(fact_means(pair.after.said[right], pair.fact[right]))
    return Kept(
        prompts=int(own.sum()),
        right=int(right.sum()),
        still=int((right & pair.after.said).sum()),
        share=share,
        left_out=pair.left_out.get(kind, 0),
    )


def overall(prompts: Sequence[Measured | None]) -> Overall | None:
    """The harmonic mean of efficacy, paraphrase and neighbourhood in one form."""
    found = [one for one in prompts if one is not None]
    if len(found) < len(GROUPS):
        return None
    return Overall(
        before=score_interval([one.before for one in found]),
        after=score_interval([one.after for one in found]),
    )


def compare_fluency(
    before: Float[Tensor, " texts"], after: Float[Tensor, " texts"], *, tokens: int, seed: int
) -> Fluency | None:
    """The entropies of texts of two models, one by one from equal beginnings."""
    if not len(before):
        return None
    known, new, change = (
        mean_interval(values, torch.Generator().manual_seed(seed))
        for values in (before, after, after - before)
    )
    return Fluency(texts=len(before), tokens=tokens, before=known, after=new, change=change)


def compare_losses(before: Losses, after: Losses, seed: int) -> PerplexityChange:
    """The losses of two models on the same instances."""
    tokens = before.response_tokens.double()
    counts = resample_counts(len(tokens), _RESAMPLES, torch.Generator().manual_seed(seed))
    return PerplexityChange(
        instances=len(tokens),
        before=per_token(before.response, tokens, counts),
        after=per_token(after.response, tokens, counts),
        rise=perplexity_increase(before.response, after.response, tokens, counts),
    )


def fact_outcomes(
    pair: Comparison, facts: Sequence[Fact], says: Mapping[int, str]
) -> tuple[FactOutcome, ...]:
    """What became of each fact.

    Args:
        pair: the questions, which hold one of efficacy for each fact.
        facts: in the order of their numbers.
        says: by its number what is said of a fact that did not stick.
    """
    rewritten = pair.of("efficacy").nonzero().flatten().tolist()
    spread = {kind: _strict_after(pair, kind) for kind in ("paraphrase", "neighbourhood")}
    return tuple(
        FactOutcome(
            id=fact.id,
            subject=fact.subject,
            prompt=fact.prompt,
            target=fact.target,
            target_true=fact.target_true,
            said_before=bool(pair.before.said[i]),
            stuck=bool(pair.after.said[i]),
            probability_before=(-pair.before.nats[i]).exp().item(),
            probability_after=(-pair.after.nats[i]).exp().item(),
            paraphrase=spread["paraphrase"].get(number),
            neighbourhood=spread["neighbourhood"].get(number),
            says=says.get(number, ""),
        )
        for number, (fact, i) in enumerate(zip(facts, rewritten, strict=True))
    )


def _strict_after(pair: Comparison, kind: Kind) -> dict[int, float]:
    own = pair.of(kind)
    fact = pair.fact[own]
    shares = fact_means(pair.after.said[own], fact).tolist()
    return dict(zip(fact.unique().tolist(), shares, strict=True))
