"""Whether edits do what they shall, and no more: the model with them, beside itself without."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.errors import EditError
from brickwork.measure.perplexity import Losses, instance_losses
from brickwork.model.load import LoadedModel
from brickwork.model.train import Encoded
from brickwork.model.words import decoded, encode
from brickwork.update.answers import Told, answer_scores
from brickwork.update.comparison import (
    Answered,
    Comparison,
    compare_fluency,
    compare_losses,
    compare_prompts,
    fact_outcomes,
    kept_answers,
    overall,
)
from brickwork.update.evaluation_results import GROUPS, EditEvaluation, Prompted
from brickwork.update.facts import Fact
from brickwork.update.fluency import TOKENS, entropies
from brickwork.update.questions import EncodedQuestion, encode_questions, questions_of
from brickwork.update.writing import own_answers


@dataclass(frozen=True)
class Material:
    """What an evaluation is of, besides the facts.

    Attributes:
        others: facts whose old answers are to stay; where one is not known, the model's own.
        instances: sequences with responses, for each functionality.
        data: a name for those.
        texts: at most so many are drawn to measure fluency.
        tokens: of each text.
        raw: give prompts to the model as they are, without the chat template.
        seed: of texts and of intervals.
    """

    others: Sequence[Fact] = ()
    instances: Mapping[str, Sequence[Encoded]] = field(default_factory=dict)
    data: str = ""
    texts: int = 0
    tokens: int = TOKENS
    raw: bool = False
    seed: int = 0


@dataclass(frozen=True, eq=False)
class _Seen:
    """What was seen of one model."""

    answers: Answered
    entropies: Float[Tensor, " texts"]
    losses: Mapping[str, Losses]


def evaluate_edits(
    loaded: LoadedModel,
    facts: Sequence[Fact],
    serving: Callable[[], AbstractContextManager[None]],
    material: Material | None = None,
    *,
    advance: Callable[[float], None] = lambda _steps: None,
) -> EditEvaluation:
    """What edits do to the model, measured without them and with them.

    Args:
        loaded: the model, which runs without the edits now and is left as it is.
        facts: those that the edits teach, with the prompts that tell whether they do.
        serving: inside, the model runs with the edits.
        material: what else is measured.
        advance: told of each of two passes when it is done.

    Raises:
        EditError: if there is no fact, or one has an answer without tokens.

    Source:
        Meng et al. 2022, arXiv:2202.05262 (CounterFact): efficacy, paraphrase and neighbourhood in
        the lenient form, their harmonic mean S, magnitudes, entropy of texts. Mitchell et al. 2021,
        arXiv:2110.11309 (zsRE): shares of tokens. Departures: neighbours that are edited
        themselves are left out, and the strict form stands beside the lenient one everywhere.
    """
    if not facts:
        raise EditError("an evaluation was asked for, but no fact was given; name at least one.")
    material, started = material or Material(), time.perf_counter()
    questions = questions_of(facts, material.others)
    asked = encode_questions(loaded, questions.asked, raw=material.raw)
    beginnings = _beginnings(loaded, facts, material)
    before = _look(loaded, asked, beginnings, material)
    advance(1)
    with serving():
        after = _look(loaded, asked, beginnings, material)
        says = _instead(loaded, asked, after.answers)
    advance(1)
    pair = Comparison(
        questions.asked, before.answers, after.answers, questions.left_out, material.seed
    )
    return EditEvaluation(
        brickwork=version("brickwork"),
        model=loaded.name,
        raw=material.raw,
        seed=material.seed,
        data=material.data,
        **_compared(pair, before, after, material),
        facts=fact_outcomes(pair, facts, says),
        seconds=time.perf_counter() - started,
    )


def _compared(pair: Comparison, before: _Seen, after: _Seen, material: Material) -> dict[str, Any]:
    """What was seen without the edits, against what was seen with them."""
    prompts: dict[str, Prompted] = {kind: compare_prompts(pair, kind) for kind in GROUPS}
    fluency = compare_fluency(
        before.entropies, after.entropies, tokens=material.tokens, seed=material.seed
    )
    return {
        "score": overall([one.lenient for one in prompts.values()]),
        "strict_score": overall([one.strict for one in prompts.values()]),
        **prompts,
        "same_subject": kept_answers(pair, "same_subject"),
        "others": kept_answers(pair, "others"),
        "fluency": fluency,
        "perplexity": {
            name: compare_losses(losses, after.losses[name], material.seed)
            for name, losses in before.losses.items()
        },
    }


def _look(
    loaded: LoadedModel,
    asked: Sequence[EncodedQuestion],
    beginnings: Sequence[Sequence[int]],
    material: Material,
) -> _Seen:
    """Everything that is measured of the model as it runs now."""
    generator = torch.Generator().manual_seed(material.seed)
    return _Seen(
        _answers(loaded, asked),
        entropies(loaded, beginnings, generator=generator, tokens=material.tokens),
        {name: instance_losses(loaded.model, own) for name, own in material.instances.items()},
    )


def _answers(loaded: LoadedModel, asked: Sequence[EncodedQuestion]) -> Answered:
    rivals = [i for i, one in enumerate(asked) if one.rival]
    told: list[Told] = [(one.prompt, one.right) for one in asked]
    told += [(asked[i].prompt, asked[i].rival) for i in rivals]
    scores = answer_scores(loaded.model, told)
    rival = torch.full((len(asked),), torch.nan, dtype=torch.float64)
    rival[rivals] = scores.nats_per_token[len(asked) :]
    right = slice(len(asked))
    return Answered(
        scores.nats_per_token[right],
        rival,
        scores.said[right],
        scores.right[right].double() / scores.tokens[right],
    )


def _beginnings(loaded: LoadedModel, facts: Sequence[Fact], material: Material) -> list[list[int]]:
    """Beginnings of texts about the subjects; the prompts of the facts where there are none."""
    texts = [text for fact in facts for text in fact.generation or (fact.prompt,)]
    texts = list(dict.fromkeys(texts))
    generator = torch.Generator().manual_seed(material.seed)
    chosen = torch.randperm(len(texts), generator=generator)[: material.texts].sort().values
    return encode(loaded, [texts[i] for i in chosen.tolist()], raw=material.raw)


def _instead(
    loaded: LoadedModel, asked: Sequence[EncodedQuestion], answers: Answered
) -> dict[int, str]:
    """What the model says now of the facts whose new answer it does not, by their numbers."""
    failed = [
        one
        for one, said in zip(asked, answers.said.tolist(), strict=True)
        if one.question.kind == "efficacy" and not said
    ]
    texts = own_answers(loaded, [one.prompt for one in failed])
    return {
        one.question.fact: decoded(loaded, text).strip()
        for one, text in zip(failed, texts, strict=True)
    }
