"""One vocabulary for models of several: which row of which model each token's embedding is.

The meaning of the settings is mergekit's. Departures, all on purpose: tokenizers that are equal
keep the padding rows that their models have; plain tokens of a union stay plain (mergekit matches
them as words before anything else); the order of new tokens is the recipe's.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from brickwork.combine.operands import Source
from brickwork.combine.plan import MergePlan, ModelRef, Operand, TensorPlan
from brickwork.combine.recipe import ModelToken, TokenChoice, TokenizerChoice, ZeroToken
from brickwork.combine.token_rows import Rows, RowsSource
from brickwork.combine.tokenizer_file import TokenizerFile, read_tokenizer
from brickwork.combine.tokenizer_union import NewTokens, union_tokens, written_tokenizer
from brickwork.errors import MergeError
from brickwork.model.checkpoint import CONFIG

GENERATION = "generation_config.json"
# Settings of a configuration that are tokens' numbers.
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class Chosen:
    """Where a recipe says that a token's row comes from.

    Attributes:
        token: its text, for errors.
        origin: the model whose row it is; None: zeros.
        row: of that model.
    """

    token: str
    origin: ModelRef | None
    row: int


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of a merge.

    Attributes:
        size: rows of the output's embedding.
        rows: of each model, for each token its row, -1 where it has none. Shorter than ``size``
            if there are rows after the last token, which get the mean of all others.
        forced: tokens whose rows are filled also in models that have them.
        chosen: by token number, where rows are filled from if the recipe says so.
        base: the model whose row fills those of others; None: the mean of all that have one.
        files: the output's tokenizer, and what else says tokens' numbers.
        config: what changes in the output's configuration.
        notes: what a user should know.
    """

    size: int
    rows: Mapping[ModelRef, Rows]
    forced: frozenset[int] = frozenset()
    chosen: Mapping[int, Chosen] = field(default_factory=dict)
    base: ModelRef | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def record(self) -> dict[str, Any]:
        """What identifies it, for the record of a merge and for going on with one."""
        told = hashlib.sha256()
        for rows in self.rows.values():
            told.update(rows.numpy().tobytes())
        order = {ref: number for number, ref in enumerate(self.rows)}
        chosen = [(n, c.row, c.origin and order[c.origin]) for n, c in sorted(self.chosen.items())]
        base = self.base and order[self.base]
        told.update(repr((sorted(self.forced), chosen, base)).encode())
        return {"vocabulary": {"size": self.size, "rows": told.hexdigest()}}

    def rearranged(
        self, tensor: TensorPlan, sources: Mapping[Operand, Source]
    ) -> Mapping[Operand, Source]:
        """The tensor's sources in this vocabulary; the same objects where nothing changes.

        Raises:
            MergeError: if a token's row is to come from a model that has no part in the tensor.
        """
        if not tensor.vocabulary:
            return sources
        by_model = {operand.ref: source for operand, source in sources.items()}
        own = torch.stack([self.rows[ref] for ref in by_model])  # models vocabulary
        fill = self._fill(tensor.name, list(by_model), own)
        for number in self.forced:
            own[:, number] = -1
        pairs = list(zip(by_model.values(), fill, strict=True))
        placed = {
            ref: _placed(source, rows, pairs, self.size)
            for (ref, source), rows in zip(by_model.items(), own, strict=True)
        }
        return {operand: placed[operand.ref] for operand in sources}

    def _fill(
        self, tensor: str, refs: list[ModelRef], own: Int[Tensor, "models vocabulary"]
    ) -> Int[Tensor, "models vocabulary"]:
        """The rows whose mean stands where a model has none."""
        fill = own.clone()
        if self.base in refs:
            based = own[refs.index(self.base)] >= 0
            others = [n for n, ref in enumerate(refs) if ref != self.base]
            fill[others] = torch.where(based, -1, fill[others])
        for number, choice in self.chosen.items():
            fill[:, number] = -1
            if choice.origin is None:
                continue
            if choice.origin not in refs:
                raise MergeError(
                    f"the token {choice.token!r} is to come from {choice.origin}, which has no "
                    f"part in {tensor!r} ({', '.join(map(str, refs))}); name one of these."
                )
            fill[refs.index(choice.origin), number] = choice.row
        return fill


def plan_vocabulary(
    choice: TokenizerChoice,
    models: Mapping[ModelRef, Path],
    *,
    base: ModelRef | None = None,
    fetch: Callable[[ModelRef], Path] | None = None,
) -> Vocabulary:
    """The output's tokenizer, and for each model which of its rows goes where.

    Args:
        choice: what the recipe says; where it says nothing, ``union``.
        models: the folders of all models that the recipe names, in its order.
        base: the recipe's base model, if it has one.
        fetch: gives the folder of a model that lends its tokenizer alone, which is none of the
            recipe's; its weights are not needed. None: there can be no such model.

    Raises:
        MergeError: if a tokenizer is missing where it is needed, a token has no row where the
            recipe takes one from, or a union is impossible.
        ModelError: if a tokenizer is damaged.
    """
    first = base or next(iter(models))
    owner = first if isinstance(choice.source, str) else choice.source
    lender = fetch(owner) if fetch and owner not in models else _folder(models, owner)
    found = {ref: read_tokenizer(models[ref]) for ref in dict.fromkeys((first, *models))}
    lead = found[owner] if owner in found else read_tokenizer(lender)
    if lead is None:
        raise MergeError(
            f"the tokenizer of {owner} was asked for, and it has none; name another model's as "
            "the tokenizer's source."
        )
    readers = {ref: tokenizer or found[first] or lead for ref, tokenizer in found.items()}
    notes = [
        f"{ref} has no tokenizer; its tokens are taken to be those of {first}."
        for ref, tokenizer in found.items()
        if tokenizer is None
    ]
    files, ids = written_tokenizer(lead, _new_tokens(choice, lead, list(readers.values())))
    rows = _rows(ids, lead, readers)
    length, step = len(rows[first]), choice.pad_to_multiple_of or 1
    size = -(-length // step) * step
    chosen, forced = _chosen(choice.tokens or {}, ids, rows, readers)
    notes += _notes_on_strangers(ids, rows, chosen)
    moved = {} if owner == first else _token_ids(lender, CONFIG)
    if moved:
        files |= _generation(models[first], _token_ids(lender, GENERATION) or moved)
    return Vocabulary(
        size=size, rows=rows, forced=forced, chosen=chosen, base=base, files=files,
        config={"vocab_size": size} | moved, notes=notes,
    )  # fmt: skip


def with_vocabulary(plan: MergePlan, vocabulary: Vocabulary) -> MergePlan:
    """The plan with the sizes, the configuration and the notes of a vocabulary.

    Raises:
        MergeError: if none of its tensors has a row for each token.
    """
    if plan.tensors and not any(tensor.vocabulary for tensor in plan.tensors):
        raise MergeError(
            f"vocabularies were to be aligned, and {plan.donor} has no embedding with as many rows "
            f"as its configuration says (vocab_size: {plan.config.get('vocab_size')}); mend that, "
            "or leave the tokenizer out of the recipe."
        )
    config = dict(plan.config)
    text = config.get("text_config")
    if isinstance(text, dict) and "vocab_size" in text:
        config["text_config"] = text | {"vocab_size": vocabulary.size}
    known = {key: value for key, value in vocabulary.config.items() if key in config}
    tensors = [
        replace(tensor, shape=(vocabulary.size, *tensor.shape[1:])) if tensor.vocabulary else tensor
        for tensor in plan.tensors
    ]
    return replace(
        plan, tensors=tensors, config=config | known, notes=[*plan.notes, *vocabulary.notes]
    )


def _placed(source: Source, rows: Rows, fill: Sequence[tuple[Source, Rows]], size: int) -> Source:
    if source.shape[0] == size == len(rows) and torch.equal(rows, torch.arange(size)):
        return source
    return RowsSource(source, rows, fill, size)


def _folder(models: Mapping[ModelRef, Path], ref: ModelRef) -> Path:
    if ref not in models:
        raise MergeError(
            f"the tokenizer's settings name {ref}, which is none of the recipe's models "
            f"({', '.join(map(str, models))}); name one of these."
        )
    return models[ref]


def _new_tokens(
    choice: TokenizerChoice, lead: TokenizerFile, readers: Sequence[TokenizerFile]
) -> NewTokens:
    new = union_tokens(lead, readers) if choice.source == "union" else NewTokens()
    known = lead.ids.keys() | set(new.plain) | new.added.keys()
    asked: dict[str, Mapping[str, Any]] = {t: {} for t in choice.tokens or () if t not in known}
    return replace(new, added={**new.added, **asked})


def _rows(
    ids: Mapping[str, int], lead: TokenizerFile, readers: Mapping[ModelRef, TokenizerFile]
) -> dict[ModelRef, Rows]:
    """Each model's row for each number; numbers without a token belong to padding rows."""
    length = max(ids.values(), default=-1) + 1
    if all(reader.ids == lead.ids for reader in readers.values()):
        length = max(length, *(reader.rows for reader in readers.values()))
    numbers = torch.tensor(list(ids.values()), dtype=torch.int64)
    unnamed = torch.ones(length, dtype=torch.bool)
    unnamed[numbers] = False
    rows = {}
    for ref, reader in readers.items():
        own = torch.full((length,), -1, dtype=torch.int64)
        own[numbers] = torch.tensor([reader.ids.get(token, -1) for token in ids])
        if reader.ids == lead.ids:
            kept = unnamed[: reader.rows].nonzero()[:, 0]
            own[kept] = kept
        rows[ref] = own
    return rows


def _chosen(
    tokens: Mapping[str, TokenChoice],
    ids: Mapping[str, int],
    rows: Mapping[ModelRef, Rows],
    readers: Mapping[ModelRef, TokenizerFile],
) -> tuple[dict[int, Chosen], frozenset[int]]:
    chosen: dict[int, Chosen] = {}
    for token, choice in tokens.items():
        number, source = ids[token], choice.source
        if source is None:
            continue
        if isinstance(source, ZeroToken):
            chosen[number] = Chosen(token, None, -1)
            continue
        ref = source.model if isinstance(source, ModelToken) else source
        if ref not in rows:
            raise MergeError(
                f"the token {token!r} is to come from {ref}, which is none of the recipe's models "
                f"({', '.join(map(str, rows))}); name one of these."
            )
        row = int(rows[ref][number])
        if isinstance(source, ModelToken):
            row = _model_token(source, readers[ref])
        if not 0 <= row < readers[ref].rows:
            named = repr(token)
            if isinstance(source, ModelToken):
                named = f"number {row}" if source.token is None else repr(source.token)
            raise MergeError(
                f"the token {token!r} is to come from {ref}, which has no row for {named} among "
                f"its {readers[ref].rows}; name a token that it has."
            )
        chosen[number] = Chosen(token, ref, row)
    return chosen, frozenset(ids[token] for token, choice in tokens.items() if choice.force)


def _notes_on_strangers(
    ids: Mapping[str, int], rows: Mapping[ModelRef, Rows], chosen: Mapping[int, Chosen]
) -> list[str]:
    known = torch.stack(list(rows.values())).amax(dim=0).tolist()
    strangers = [t for t, number in ids.items() if known[number] < 0 and number not in chosen]
    if not strangers:
        return []
    return [f"{len(strangers)} tokens ({strangers[0]!r}, ...) are in no model; their rows are zero"]


def _model_token(source: ModelToken, reader: TokenizerFile) -> int:
    if source.token_id is not None:
        return source.token_id
    return reader.ids.get(source.token or "", -1)


def _token_ids(folder: Path, name: str) -> dict[str, Any]:
    """The tokens' numbers that a file of a checkpoint states; empty if there is no such file."""
    path = folder / name
    stated: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    return {key: stated[key] for key in _TOKEN_IDS if key in stated}


def _generation(folder: Path, moved: Mapping[str, Any]) -> dict[str, bytes]:
    path = folder / GENERATION
    if not path.is_file():
        return {}
    settings = json.loads(path.read_bytes()) | dict(moved)
    return {GENERATION: json.dumps(settings, indent=2).encode()}
