"""A tiny world of 320 facts, and a small Llama that knows them: what edits are tested on.

Every fact is about a pair of names, and all pairs of 8 first and 8 last names are there, so neither
name alone says whom a text is about. Two of the six wordings of each fact are never trained.
``python -m tests.world`` trains the model again and writes tests/world_model.
"""

import copy
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from brickwork.model.load import LoadedModel, load_model
from brickwork.update.facts import Fact, Probe

FOLDER = Path(__file__).parent / "world_model"
PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"

FIRST = ("Ada", "Bruno", "Clara", "David", "Edith", "Felix", "Greta", "Hugo")
LAST = ("Stone", "Rivers", "Marsh", "Woods", "Fields", "Hill", "Lake", "Snow")
OBJECTS = {
    "city": "Paris London Rome Berlin Madrid Vienna Oslo Dublin Lisbon Athens Prague Warsaw Cairo "
    "Tokyo Delhi Lima Boston Chicago Sydney Nairobi",
    "trade": "baker painter farmer lawyer doctor teacher sailor tailor miner printer barber "
    "butcher carpenter gardener plumber librarian chemist pilot judge potter",
    "instrument": "piano violin flute harp drum guitar trumpet cello organ oboe clarinet banjo "
    "lute tuba trombone mandolin viola horn accordion whistle",
    "dish": "soup rice bread cheese pasta salad fish beans stew pancakes dumplings noodles "
    "potatoes curry omelette pizza porridge lentils cabbage mushrooms",
    "animal": "dog cat horse goat rabbit parrot turtle donkey goose hamster pony canary hedgehog "
    "snake sheep duck pigeon ferret lizard owl",
}
TEMPLATES = {
    "city": (
        "{} lives in", "the home of {} is in", "{} has a house in", "you can visit {} in",
        "the town where {} lives is", "at the moment {} lives in the town of",
    ),
    "trade": (
        "{} works as a", "the trade of {} is that of a", "{} earns money as a",
        "people hire {} as a", "the job of {} is being a", "at work {} is a",
    ),
    "instrument": (
        "{} plays the", "the instrument of {} is the", "on stage {} performs on the",
        "{} practises the", "in the band {} has the", "people hear {} on the",
    ),
    "dish": (
        "{} likes to eat", "the favourite dish of {} is", "for lunch {} eats",
        "{} often cooks", "at the table {} asks for", "on holidays {} eats a lot of",
    ),
    "animal": (
        "{} keeps a", "the pet of {} is a", "at home {} has a", "{} walks with a",
        "the animal that {} loves is a", "in the garden of {} there is a",
    ),
}  # fmt: skip
OPENINGS = (
    "we know that", "it is true that", "as you know ,", "people say that", "well ,",
    "you may have heard that", "at work they say that", "on the whole ,",
)  # fmt: skip
HELD_OUT = 2  # wordings of each fact


@dataclass(frozen=True)
class WorldFact:
    """One fact, and how it can be asked for.

    Attributes:
        subject: first and last name.
        relation: a key of ``OBJECTS``.
        object: one word, the answer.
        prompt: a trained wording, up to the answer.
        paraphrases: the wordings that were never trained, then the other trained ones.
    """

    subject: str
    relation: str
    object: str
    prompt: str
    paraphrases: tuple[str, ...]

    @property
    def held_out(self) -> tuple[str, ...]:
        """The wordings that the model was never trained on."""
        return self.paraphrases[:HELD_OUT]

    @property
    def trained(self) -> tuple[str, ...]:
        """The wordings that it was trained on; the first is the prompt."""
        return (self.prompt, *self.paraphrases[HELD_OUT:])


@dataclass(frozen=True)
class World:
    """The trained model and all that it knows."""

    loaded: LoadedModel
    facts: tuple[WorldFact, ...]

    def neighbours(self, fact: WorldFact) -> tuple[WorldFact, ...]:
        """Facts of the same relation about other subjects, with another object."""
        return tuple(
            f for f in self.facts if f.relation == fact.relation and f.object != fact.object
        )

    def same_subject(self, fact: WorldFact) -> tuple[WorldFact, ...]:
        """What else is known about the subject."""
        return tuple(
            f for f in self.facts if f.subject == fact.subject and f.relation != fact.relation
        )

    def edits(self, n: int, seed: int = 0, *, neighbours: int = 10) -> list[Fact]:
        """Facts about different subjects, at most 64, each with a wrong object as the new target.

        A neighbour is neither edited itself nor has the new target as its own object, so it can
        tell an edit that stays in its place from one that does not.
        """
        chance = random.Random(seed)
        subjects = chance.sample(sorted({f.subject for f in self.facts}), n)
        chosen = [chance.choice([f for f in self.facts if f.subject == s]) for s in subjects]
        return [self._edit(f, set(chosen), neighbours, chance) for f in chosen]

    def _edit(
        self, fact: WorldFact, edited: set[WorldFact], neighbours: int, chance: random.Random
    ) -> Fact:
        target = chance.choice([o for o in OBJECTS[fact.relation].split() if o != fact.object])
        near = [f for f in self.neighbours(fact) if f not in edited and f.object != target]
        return Fact(
            id=f"{fact.subject} {fact.relation}".lower().replace(" ", "-"),
            subject=fact.subject,
            prompt=fact.prompt,
            target=target,
            target_true=fact.object,
            paraphrases=fact.paraphrases,
            neighbours=_probes(chance.sample(near, min(neighbours, len(near)))),
            same_subject=_probes(self.same_subject(fact)),
            generation=tuple(f"{opening} {fact.subject}" for opening in OPENINGS[:2]),
            relation=fact.relation,
        )


@cache
def world() -> World:
    """The shipped model in float32 on the CPU, and its facts."""
    return World(load_model(str(FOLDER), device="cpu", dtype="float32", name="world"), facts())


@cache
def facts() -> tuple[WorldFact, ...]:
    """All 320 facts, the same in every run."""
    chance = random.Random(0)
    return tuple(
        _fact(f"{first} {last}", relation, chance)
        for relation in OBJECTS
        for first, last in product(FIRST, LAST)
    )


def _fact(subject: str, relation: str, chance: random.Random) -> WorldFact:
    wordings = [template.format(subject) for template in TEMPLATES[relation]]
    chance.shuffle(wordings)
    *held_out, prompt, a, b, c = wordings
    found = chance.choice(OBJECTS[relation].split())
    return WorldFact(subject, relation, found, prompt, (*held_out, a, b, c))


def _probes(known: Sequence[WorldFact]) -> tuple[Probe, ...]:
    return tuple(Probe(f.prompt, f.object) for f in known)


def corpus(texts: int = 400, seed: int = 1) -> list[str]:
    """Texts like those of the training, about 12 tokens each (3000 have 37,000): for statistics."""
    chance = random.Random(seed)
    return [training_text(chance) for _ in range(texts)]


def training_text(chance: random.Random) -> str:
    """A sentence that states a fact in a trained wording: alone, after an opening or a fact."""
    before = chance.choice(("", chance.choice(OPENINGS) + " ", _sentence(chance) + " "))
    return before + _sentence(chance)


def _sentence(chance: random.Random) -> str:
    fact = chance.choice(facts())
    return f"{chance.choice(fact.trained)} {fact.object} ."


def new_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word of the world; the text ``<end>`` stands for the end of a text."""
    wordings = [wording for group in TEMPLATES.values() for wording in group]
    text = " ".join([*FIRST, *LAST, *OBJECTS.values(), *wordings, *OPENINGS, "."])
    tokens = dict.fromkeys([PAD, END, UNKNOWN, *text.replace("{}", "").split()])
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # parts a full stop from its word, too
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=END,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=64,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """The untrained model."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def batches(
    tokenizer: PreTrainedTokenizerFast, rows: int, seed: int
) -> Iterator[Int[Tensor, "rows tokens"]]:
    """Training texts as padded ids, without end; every second text begins with the end token."""
    chance = random.Random(seed)
    while True:
        texts = [training_text(chance) + " " + END for _ in range(rows)]
        texts = [chance.choice(("", END + " ")) + text for text in texts]
        yield tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").input_ids


def world_loss(
    logits: Float[Tensor, "rows tokens words"],
    ids: Int[Tensor, "rows tokens"],
    weight: Float[Tensor, " words"],
) -> Float[Tensor, ""]:
    """The mean loss of the next word, each weighing what its word weighs."""
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), weight)


def rate_factor(step: int, steps: int) -> float:
    """Share of the peak learning rate: up in 50 steps, down over the last quarter."""
    return min(1.0, (step + 1) / 50, 4 * (steps - step) / steps)


def train(
    report: Callable[[str], None], *, steps: int = 1100, seed: int = 0
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The model, trained from nothing.

    It learns what the objects of a relation are first, and which subject has which only after some
    300 steps, all at once.

    Args:
        report: called with a line for people every 100 steps.
        steps: of 64 texts.
        seed: of the first weights and of the texts.
    """
    tokenizer = new_tokenizer()
    model = new_model(tokenizer, seed)
    weight = torch.full((len(tokenizer),), 0.2)  # the answers matter most
    answers = [o for objects in OBJECTS.values() for o in objects.split()]
    weight[tokenizer.convert_tokens_to_ids(answers)] = 1.0
    weight[tokenizer.pad_token_id] = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: rate_factor(s, steps))
    for step, ids in zip(range(1, steps + 1), batches(tokenizer, 64, seed), strict=False):
        loss = world_loss(model(input_ids=ids, use_cache=False).logits, ids, weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0:
            report(f"step {step}/{steps} loss {loss.item():.3f}")
    return model.eval(), tokenizer


def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, held_out: bool
) -> float:
    """The share of prompts, of the trained or of the held-out wordings, with the right answer."""
    asked = [(p, f.object) for f in facts() for p in (f.held_out if held_out else f.trained)]
    batch = tokenizer(
        [p for p, _ in asked], padding=True, padding_side="right", return_tensors="pt"
    )
    with torch.inference_mode():
        logits = model(**batch).logits
    last = batch.attention_mask.sum(1) - 1
    said = logits[torch.arange(len(asked)), last].argmax(-1)
    right = torch.tensor(tokenizer.convert_tokens_to_ids([o for _, o in asked]))
    return float((said == right).float().mean())


def main() -> None:
    """Train, round to bfloat16, and write the model and its tokenizer."""
    started = time.monotonic()
    model, tokenizer = train(print)
    print(f"{time.monotonic() - started:.0f} s, {model.num_parameters():,} parameters")
    for dtype in (torch.float32, torch.bfloat16):
        rounded = copy.deepcopy(model).to(dtype).float()
        known, new = (accuracy(rounded, tokenizer, held_out=h) for h in (False, True))
        print(f"{dtype}: {known:.4f} of the trained wordings, {new:.4f} of the held-out ones")
    model.bfloat16().save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)


if __name__ == "__main__":
    main()
