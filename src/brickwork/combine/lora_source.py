"""A LoRA as part of a weight: rows of ``W + scaling * B A``, computed when they are read.

Nothing is written and no matrix of the weight's size is made, so ``base+lora`` costs what ``base``
does. LoRA: Hu et al. 2021, arXiv:2106.09685.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig

from brickwork.brick.base import Base, Fingerprint
from brickwork.brick.brick import Brick
from brickwork.brick.check import require_fit
from brickwork.brick.folder import (
    CONFIG_FILE,
    PEFT_TENSORS,
    SPEC_FILE,
    is_brick_folder,
    is_peft_folder,
    read_brick,
    read_peft,
)
from brickwork.brick.lora import LoraOptions
from brickwork.combine.operands import Source
from brickwork.errors import MergeError
from brickwork.model.load import outline_model
from brickwork.model.sockets import sites_of

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FILES = [CONFIG_FILE, PEFT_TENSORS, SPEC_FILE]


@dataclass(frozen=True)
class LowRank:
    """What a LoRA adds to one weight: ``scaling * b @ a``, turned round for a ``transposed`` one.

    Attributes:
        a: from the inputs to the rank, in float32.
        b: from the rank to the outputs, in float32.
        scaling: the factor on their product.
        transposed: whether the weight is inputs by outputs.
    """

    a: Float[Tensor, "rank in"]
    b: Float[Tensor, "out rank"]
    scaling: float
    transposed: bool

    @property
    def left(self) -> Float[Tensor, "rows rank"]:
        """The factor whose rows are the weight's rows."""
        return self.a.T if self.transposed else self.b

    @property
    def right(self) -> Float[Tensor, "rank columns"]:
        """The factor whose columns are the weight's columns."""
        return self.b.T if self.transposed else self.a


class LoraSource:
    """Rows of a weight with a LoRA added; the weight is read as ``weight`` gives it."""

    def __init__(self, weight: Source, update: LowRank, *, cast: torch.dtype | None = None) -> None:
        self._weight, self._update, self._cast = weight, update, cast
        self.shape = weight.shape

    def read(self, start: int, stop: int) -> Float[Tensor, "rows columns"]:
        """See ``Source.read``; the sum is rounded to ``cast`` before it is widened again."""
        rows = self._weight.read(start, stop)
        left, right = self._update.left[start:stop].to(rows.dtype), self._update.right
        total = torch.addmm(rows, left, right.to(rows.dtype), alpha=self._update.scaling)
        return total if self._cast is None else total.to(self._cast).to(rows.dtype)


def find_adapter(lora: str, revision: str | None) -> Path:
    """The folder of a LoRA: a local one as it is, or a Hub id that is fetched first.

    Raises:
        MergeError: if there is none of that name.
    """
    folder = Path(lora).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(lora):
        raise MergeError(
            f"there is no LoRA {lora!r}: no such folder is here, and it is no Hub id; write the "
            "path of a folder, or an id like 'org/name', after the '+'."
        )
    try:
        return Path(snapshot_download(lora, revision=revision, allow_patterns=_FILES))
    except Exception as error:  # the errors of the Hub's HTTP library have no public type
        raise MergeError(
            f"the LoRA {lora!r} could not be fetched ({type(error).__name__}: {error}), and no "
            "such folder is here; check the spelling and the connection."
        ) from None


def open_adapter(
    lora: str, adapter: Path, checkpoint: Path, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, LowRank]:
    """What a LoRA adds to the tensors of a checkpoint, by their names.

    The base's weights are not compared with those that a brick was made on: a LoRA of one
    fine-tuned model may be added to another of the same shapes.

    Args:
        lora: its name, for errors.
        adapter: the folder of a PEFT adapter, or of a brick of the form ``lora``.
        checkpoint: the folder of what it is added to.
        shapes: of the checkpoint's tensors, by name.

    Raises:
        MergeError: if there is no such LoRA, or the checkpoint has no weight for a part of it.
        BrickFormatError: if it is damaged, or is more than a LoRA.
        MisfitError: if it is for other modules than the model has.
    """
    outline = outline_model(str(checkpoint)).model
    brick = read_lora(lora, adapter, Base(_without_weights(outline.config), sites_of(outline)))
    options = LoraOptions.model_validate(brick.spec.options)
    updates = {}
    for site, slots in brick.by_site.items():
        a, b = slots["A"].to(torch.float32), slots["B"].to(torch.float32)
        turned = not isinstance(outline.get_submodule(site), nn.Linear)  # else it is a Conv1D
        update = LowRank(a, b, options.scaling(site, a.shape[0]), turned)
        name = stored_name(f"{site}.weight", f"{outline.base_model_prefix}.", shapes)
        product = (len(update.left), update.right.shape[1])
        if name is None or shapes[name] != product:
            found = "no such tensor of its own" if name is None else f"{list(shapes[name])}"
            raise MergeError(
                f"the LoRA {lora!r} adds {list(product)} to {site}.weight, and the checkpoint "
                f"{checkpoint.name!r} has {found} there; add it to the model that it was made "
                "for, saved with weights that are not tied if it changes the unembedding."
            )
        updates[name] = update
    return updates


def read_lora(lora: str, adapter: Path, base: Base) -> Brick:
    """A LoRA as a brick of a base, whichever weights of the same shapes it was made on.

    Args:
        lora: its name, for errors.
        adapter: the folder of a PEFT adapter, or of a brick of the form ``lora``.
        base: what it is added to.

    Raises:
        MergeError: if the folder is neither, or holds another form.
        BrickFormatError: if it is damaged, or is more than a LoRA.
        MisfitError: if it is for other modules than the base has.
    """
    if is_brick_folder(adapter):
        kept = read_brick(adapter)
        brick = Brick(kept.spec.model_copy(update={"base": base.fingerprint}), kept.tensors)
        require_fit(brick, base)
    elif is_peft_folder(adapter):
        brick = read_peft(adapter, base, "adapter")
    else:
        raise MergeError(
            f"{lora!r} was to be added to a model, and is neither a PEFT adapter nor a brick; "
            "name the folder that holds adapter_config.json or brick.json."
        )
    if brick.spec.form != "lora":
        raise MergeError(
            f"{lora!r} is of the form {brick.spec.form!r}, which does not add to weights; only a "
            "LoRA can follow a '+'."
        )
    return brick


def _without_weights(config: PreTrainedConfig) -> Fingerprint:
    return Fingerprint(architecture=config.model_type, shapes="", weights="")


def stored_name(name: str, prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What the checkpoint calls a parameter: some leave out the prefix of the whole model."""
    spellings = (name, name.removeprefix(prefix))
    return next((spelling for spelling in spellings if spelling in shapes), None)
