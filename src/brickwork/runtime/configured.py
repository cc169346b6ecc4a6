"""A base model on which every row of a batch runs its own configuration."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.brick.check import require_fit
from brickwork.brick.configuration import BrickUse, Configuration
from brickwork.brick.forms import find_form
from brickwork.errors import ConfigurationError, UnknownNameError
from brickwork.model.attach import attached
from brickwork.model.load import LoadedModel
from brickwork.model.words import decoded, encode, stop_tokens
from brickwork.runtime.bank import Bank
from brickwork.runtime.decode import Spoken, decode
from brickwork.runtime.ffn_selection import Spans
from brickwork.runtime.gather import Rows, Weighted, gather
from brickwork.runtime.kernels import Records
from brickwork.runtime.layout import Layout, lay_out
from brickwork.runtime.plan import Plan, resolve
from brickwork.runtime.selection import allow_bypass, selecting
from brickwork.runtime.sparse_ffn import packed
from brickwork.store.store import Store

# What bricks do to each position by itself, whatever batch it is in.
_PER_POSITION = frozenset({"add", "scale", "shift", "mask", "skip", "patch", "codebook"})
# Modules of one block that read the same tensor.
_SAME_INPUT = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}


@dataclass(frozen=True)
class Piece:
    """A token of one row as it comes, and the text that it completes (often one word, or none).

    ``blocks`` says how many of the model's blocks it took; all, unless it left early.
    """

    row: int
    token: int
    text: str
    blocks: int


@dataclass(frozen=True)
class Answer:
    """What one row said: text and tokens, ``stop`` or ``length``, and seconds until it was done.

    ``blocks`` says for every token how many of the model's blocks it took.
    """

    text: str
    tokens: tuple[int, ...]
    finish: str
    seconds: float
    blocks: tuple[int, ...]


class ConfiguredModel:
    """A base with a bank of bricks, from which each row of a batch takes its own.

    Args:
        loaded: the base, as ``load_model`` gives it.
        store: where names in configurations are looked up; bricks given to ``add`` come first.
        budget: bytes that loaded bricks may take; the least recently used leave first.
    """

    def __init__(
        self, loaded: LoadedModel, store: Store | None = None, *, budget: int | None = None
    ) -> None:
        self.loaded, self.store = loaded, store
        like = next(loaded.model.parameters()).detach()[:0]
        self.bank = Bank(like, self._input_of, budget=budget)
        self._named: dict[str, Brick] = {}
        self._records: Mapping[int, Records] | None = None

    @contextmanager
    def packed(self) -> Iterator[None]:
        """Inside, an FFN of which little is kept reads no more than that in a decoding step.

        The weights of each FFN lie as one record for each neuron meanwhile, and no second time;
        their values and what the model answers stay the same, up to rounding. Leaving puts them
        back, with equal bits.
        """
        with packed(self.loaded.model, release=True) as records:
            self._records = records
            try:
                yield
            finally:
                self._records = None

    def add(self, brick: Brick, name: str | None = None) -> None:
        """Make a brick known under its own or another name, without a store.

        Raises:
            MisfitError: if it does not fit the base.
        """
        require_fit(brick, self.loaded.base)
        self._named[name or brick.spec.name] = brick

    def find(self, reference: str) -> tuple[str, Brick]:
        """The full reference and the brick that a name means."""
        if reference in self._named:
            return reference, self._named[reference]
        if self.store is None:
            raise UnknownNameError("brick", reference, self._named)
        return self.store.entry(reference).reference, self.store.get(reference)

    def plan(
        self,
        configurations: Sequence[Configuration],
        reasons: Sequence[dict[str, str]] | None = None,
    ) -> Plan:
        """What these configurations mean here, checked and costed; nothing is run."""
        return resolve(configurations, self.find, self.loaded, reasons)

    def encode(self, prompts: Sequence[str], *, raw: bool = False) -> list[list[int]]:
        """Prompts as token ids: as instructions in the chat template if there is one, or raw.

        Raises:
            ConfigurationError: if the base was loaded without a tokenizer.
        """
        return encode(self.loaded, prompts, raw=raw)

    @torch.no_grad()
    def logits(
        self,
        prompts: Sequence[Sequence[int]],
        configurations: Sequence[Configuration],
        *,
        told: Sequence[int] | None = None,
    ) -> list[Float[Tensor, "tokens vocabulary"]]:
        """The logits after every token of every row, as if each row ran alone; no gradients.

        ``told`` is as in ``serving``.
        """
        with self.serving(prompts, self.plan(configurations), told=told) as layout:
            output = self.loaded.model(
                **layout.inputs, attention_mask=layout.mask_or_none, position_ids=layout.positions
            ).logits
        return [row[-length:] for row, length in zip(output, layout.lengths, strict=True)]

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        configurations: Sequence[Configuration] | Plan,
        *,
        raw: bool = False,
    ) -> list[Answer]:
        """The answers of a batch, each row under its own configuration.

        Args:
            prompts: instructions as text, or token ids.
            configurations: one for each prompt, or a plan made from them.
            raw: give text to the model as it is, without the chat template.
        """
        started = time.perf_counter()
        plan = configurations if isinstance(configurations, Plan) else self.plan(configurations)
        said: list[list[Piece]] = [[] for _ in prompts]
        seconds = [0.0 for _ in prompts]
        for piece in self.stream(prompts, plan, raw=raw):
            said[piece.row].append(piece)
            seconds[piece.row] = time.perf_counter() - started
        stops = stop_tokens(self.loaded)
        answers = []
        for row, used in zip(said, seconds, strict=True):
            finish = "stop" if row and row[-1].token in stops else "length"
            pieces = row[:-1] if finish == "stop" else row
            tokens, blocks = (
                tuple(getattr(p, name) for p in pieces) for name in ("token", "blocks")
            )
            answers.append(Answer(decoded(self.loaded, tokens), tokens, finish, used, blocks))
        return answers

    @torch.inference_mode()
    def stream(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        configurations: Sequence[Configuration] | Plan,
        *,
        raw: bool = False,
    ) -> Iterator[Piece]:
        """The tokens of all rows as they come; the model serves this batch until the last one."""
        plan = configurations if isinstance(configurations, Plan) else self.plan(configurations)
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        ids = self.encode(texts, raw=raw) if texts else [list(map(int, p)) for p in prompts]
        options = [row.configuration.options for row in plan.rows]
        model, stops = self.loaded.model, stop_tokens(self.loaded)
        with self.serving(ids, plan) as layout:
            every = len(self.loaded.base.of_kind("block"))
            spoken = [Spoken(partial(decoded, self.loaded)) for _ in ids]
            for row, token, last in decode(model, layout, options, stops):
                text = spoken[row].end() if token in stops else spoken[row].add(token, last=last)
                blocks = layout.exits.blocks(row)[0] if layout.exits else every
                yield Piece(row, token, text, blocks)

    @contextmanager
    def serving(
        self,
        prompts: Sequence[Sequence[int]],
        plan: Plan,
        *,
        told: Sequence[int] | None = None,
    ) -> Iterator[Layout]:
        """Inside, the base serves this batch: its modules add and keep what the plan's bricks say.

        Args:
            prompts: token ids of each row.
            plan: one row for each prompt.
            told: from how many of each row's last tokens the next one is wanted, 1 by default.
                Early exits and choices by prompt act there, not on what comes before.

        Raises:
            ConfigurationError: if there is not one prompt, or one number told, for each row, a
                prompt cannot be run, or the base is serving another batch.
        """
        if len(prompts) != len(plan.rows):
            raise ConfigurationError(
                f"{len(prompts)} prompts, but {len(plan.rows)} configurations; give one for each."
            )
        told = [1] * len(prompts) if told is None else told
        if len(told) != len(prompts) or min(told, default=1) < 1:
            raise ConfigurationError(
                f"{len(prompts)} prompts, of which {list(told)} tokens tell the next one; give a "
                "number from 1 for each."
            )
        model, rows = self.loaded.model, self._load(plan)
        with gather(self.bank, rows) as work:
            layout = lay_out(model, prompts, rows)
            allow_bypass(self.loaded, work)
            spans = Spans(layout.lengths, told)
            with (
                attached(model, len(rows), work),
                selecting(self.loaded, rows, spans, records=self._records, busy=work) as exits,
            ):
                layout.exits = exits
                yield layout

    @contextmanager
    def applied(self, bricks: Configuration | Sequence[Brick]) -> Iterator[None]:
        """Inside, ``loaded.model`` itself runs with these bricks, whatever batch it is given.

        Gradients flow through the bricks, and hooks see what modules say with them.

        Args:
            bricks: a configuration, or bricks as built, which need not be known by name.

        Raises:
            MisfitError: if a brick does not fit the base.
            ConfigurationError: if a brick does not act on each position by itself, or the base
                is serving a batch.
        """
        plan = self.plan([bricks]) if isinstance(bricks, Configuration) else self._plan_of(bricks)
        for use in plan.rows[0].bricks:
            form = use.brick.spec.form
            if use.weight and find_form(form).effect not in _PER_POSITION:
                raise ConfigurationError(
                    f"{use.reference} was to be applied to every batch, but a {form} depends on "
                    "where prompts start and end; leave it out, or serve prompts that are known."
                )
        rows = self._load(plan)
        with (
            gather(self.bank, rows) as work,
            attached(self.loaded.model, None, work),
            selecting(self.loaded, rows, Spans([1], [1])),
        ):
            yield

    def _plan_of(self, bricks: Sequence[Brick]) -> Plan:
        named = {f"sha256:{brick.hash}": brick for brick in bricks}
        uses = tuple(BrickUse(name=f"sha256:{brick.hash}") for brick in bricks)
        return resolve([Configuration(bricks=uses)], lambda name: (name, named[name]), self.loaded)

    def _load(self, plan: Plan) -> Rows:
        needed = plan.bricks
        for brick in needed.values():
            self.bank.load(brick, keep=needed)
        return [
            [Weighted(self.bank.resident(use.brick.hash), use.weight) for use in row.bricks]
            for row in plan.rows
        ]

    def _input_of(self, path: str) -> str:
        """A name for the tensor that the module at ``path`` reads."""
        address = self.loaded.base.sites[path].address
        if address == path:  # a module without a role: nothing is known of its input
            return path
        block, _, role = address.rpartition(".")
        return f"{block}.{_SAME_INPUT.get(role, role)}"
