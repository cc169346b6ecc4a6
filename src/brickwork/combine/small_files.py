"""What lies beside the weights: the index, the configuration, the tokenizer, and the record."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brickwork.brick.brick import canonical_json
from brickwork.combine.operands import PIECE
from brickwork.combine.plan import MergePlan, ModelRef
from brickwork.combine.sources import Extras, Sources, raw_bytes
from brickwork.model.checkpoint import CONFIG, INDEX, files_beside
from brickwork.model.shard_layout import ShardLayout

# To be raised when the same plan gives other numbers than before.
ARITHMETIC = 1
RECORD = "brickwork.json"
_TOKENIZERS = frozenset({"tokenizer.json", "tokenizer_config.json"})


def small_files(
    plan: MergePlan, extras: Extras, index: Mapping[str, Any] | None, sources: Sources
) -> dict[str, bytes]:
    """All files of the output but the weights, by name."""
    record = {
        "operation": "combine",
        **extras.record,
        "plan": plan_hash(plan),
        "sources": _about(plan, sources.files()),
    }
    files = files_beside(plan.folders[plan.donor], tokenizer=not _TOKENIZERS & set(extras.files))
    files |= extras.files
    files |= {CONFIG: _pretty(plan.config), RECORD: _pretty(record)}
    return files if index is None else files | {INDEX: _pretty(index)}


def plan_hash(plan: MergePlan) -> str:
    """What identifies a plan on any machine: sha256 in hex."""
    document = {
        "arithmetic": [ARITHMETIC, PIECE],
        "seed": plan.seed,
        "config": plan.config,
        "tensors": [repr(tensor) for tensor in plan.tensors],
    }
    return _hash(document)


def file_states(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """What shows that a file has changed: its path, size, and time of change."""
    stats = [(str(file), file.stat()) for file in files]
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def merge_key(
    plan: MergePlan, extras: Extras, states: Sequence[tuple[str, int, int]], layout: ShardLayout
) -> str:
    """What identifies a merge on this machine: as long as it stays, so do the output's bytes."""
    document = {
        "plan": plan_hash(plan),
        "layout": [[file, layout.headers[file].hex()] for file in sorted(layout.headers)],
        "sources": states,
        "folders": sorted([str(ref), str(folder)] for ref, folder in plan.folders.items()),
        "record": extras.record,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in extras.files.items()},
        "tensors": {
            name: hashlib.sha256(raw_bytes(tensor).numpy().data).hexdigest()
            for name, tensor in extras.tensors.items()
        },
    }  # fmt: skip
    return _hash(document)


def model_name(ref: ModelRef, folder: Path) -> str:
    """A name that tells nothing of where the model is on this machine."""
    model = Path(ref.model).expanduser()
    name = folder.resolve().name if model.is_dir() else ref.model
    lora = Path(ref.lora).expanduser().resolve().name if ref.lora else ""
    return name + (f"@{ref.revision}" if ref.revision else "") + (f"+{lora}" if lora else "")


def _about(plan: MergePlan, files: Sequence[Path]) -> list[dict[str, Any]]:
    """The models by name, and the sizes of their files."""
    sizes = {file: file.stat().st_size for file in files}
    return [
        {
            "model": model_name(ref, folder),
            "files": {file.name: size for file, size in sizes.items() if file.parent == folder},
        }
        for ref, folder in plan.folders.items()
    ]


def _hash(document: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(document, default=str))
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()


def _pretty(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()
