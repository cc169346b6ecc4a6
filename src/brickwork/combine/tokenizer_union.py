"""One ``tokenizer.json`` out of several: tokens are taken away or appended, numbers stay.

The tokens of the first tokenizer keep their numbers. Every token also enters the vocabulary of
the model part, because the library numbers an added token that is not there anew when it loads.
"""

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from brickwork.combine.tokenizer_file import SETTINGS, TOKENIZER, TokenizerFile, merges_of
from brickwork.errors import MergeError

_FLAGS: Mapping[str, Any] = {
    "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False,
}  # fmt: skip
# Files that hold an older form of what tokenizer.json says, and would contradict a changed one.
_OLDER = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")


@dataclass(frozen=True)
class NewTokens:
    """What a tokenizer is to have besides its own.

    Attributes:
        plain: tokens that its merges make, in the order of their numbers.
        added: tokens that are matched before anything else, with their flags.
        merges: pairs that the plain ones are made of, after its own.
    """

    plain: Sequence[str] = ()
    added: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    merges: Sequence[tuple[str, str]] = ()


def union_tokens(owner: TokenizerFile, others: Sequence[TokenizerFile]) -> NewTokens:
    """What the other tokenizers have that the first lacks, in their order.

    Plain tokens of the others get the merges that make them, after those of the first, so that a
    text can reach them. Of an added token's flags, the first tokenizer's win.

    Raises:
        MergeError: if plain tokens of an algorithm would go into a tokenizer of another.
    """
    added: dict[str, Mapping[str, Any]] = {}
    for other in others:
        for token in _in_order(other.ids):
            if token in other.added and token not in owner.added:
                added.setdefault(token, other.added[token])
    held = owner.ids.keys() | added.keys()
    plain = dict.fromkeys(t for other in others for t in _in_order(other.ids) if t not in held)
    if plain:
        _require_alike(owner, others, len(plain))
    return NewTokens(
        list(plain), added, _new_merges(owner, others if plain else (), held | plain.keys())
    )


def _in_order(ids: Mapping[str, int]) -> list[str]:
    return sorted(ids, key=ids.__getitem__)


def _new_merges(
    owner: TokenizerFile, others: Sequence[TokenizerFile], held: Set[str]
) -> list[tuple[str, str]]:
    known = {(left, right) for left, right, _ in merges_of(owner.document["model"])}
    merges = [pair for other in others for pair in _possible(other.document["model"], held)]
    return [pair for pair in dict.fromkeys(merges) if pair not in known]


def _possible(model: Mapping[str, Any], held: Set[str]) -> list[tuple[str, str]]:
    """The merges whose parts and result are all there."""
    return [merge[:2] for merge in merges_of(model) if {*merge} <= held]


def written_tokenizer(
    owner: TokenizerFile, new: NewTokens
) -> tuple[dict[str, bytes], dict[str, int]]:
    """The owner's files without the tokens it has no rows for and with new ones, and all numbers.

    If nothing changes, the files are the owner's own to the byte.
    """
    ids = dict(owner.ids)
    added = dict(owner.added) | dict(new.added)
    following = max(ids.values(), default=-1) + 1
    for token in (*new.plain, *new.added):
        if token not in ids:
            ids[token] = following
            following += 1
    if len(ids) == len(owner.ids) and len(added) == len(owner.added) and not owner.overfull:
        return dict(owner.files), ids
    document = _document(owner, new, ids, added)
    settings = _settings(owner, ids, added)
    files = {name: raw for name, raw in owner.files.items() if name not in _OLDER}
    changed = {TOKENIZER: document} | ({SETTINGS: settings} if SETTINGS in files else {})
    for name, data in changed.items():
        files[name] = json.dumps(data, ensure_ascii=False).encode("utf-8")
    return files, ids


def _document(
    owner: TokenizerFile,
    new: NewTokens,
    ids: Mapping[str, int],
    added: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    model = dict(owner.document["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {token: ids[token] for token in sorted(ids, key=ids.__getitem__)}
    else:
        model["vocab"] = model["vocab"][: owner.rows]
    if "merges" in model:
        model["merges"] = [*_possible(model, ids.keys()), *new.merges]
    entries = [
        {"id": ids[token], "content": token} | {f: flags.get(f, _FLAGS[f]) for f in _FLAGS}
        for token, flags in sorted(added.items(), key=lambda item: ids[item[0]])
    ]
    return dict(owner.document) | {"added_tokens": entries, "model": model}


def _settings(
    owner: TokenizerFile, ids: Mapping[str, int], added: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    settings = dict(owner.settings)
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"] = {
            str(ids[token]): {"content": token} | {f: flags.get(f, _FLAGS[f]) for f in _FLAGS}
            for token, flags in sorted(added.items(), key=lambda item: ids[item[0]])
        }
    return settings


def _require_alike(owner: TokenizerFile, others: Sequence[TokenizerFile], new: int) -> None:
    kinds = [str(t.document["model"].get("type")) for t in (owner, *others)]
    if len(set(kinds)) > 1 or isinstance(owner.document["model"]["vocab"], list):
        raise MergeError(
            f"a union of tokenizers was asked for, which would add {new} tokens to one of the "
            f"algorithm {kinds[0]} from others ({', '.join(sorted(set(kinds)))}); that works for "
            "one algorithm other than Unigram alone, so name one model's tokenizer as its source."
        )
