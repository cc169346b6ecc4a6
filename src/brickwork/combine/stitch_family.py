"""A family of stitched models measured, kept in a folder, and read from it again.

The folder holds the maps and what they were found to be worth, never a copy of the two models.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from brickwork.brick.check import fingerprint_misfits
from brickwork.brick.durable import require_free
from brickwork.brick.files import json_bytes, read_json, read_tensors, tensor_bytes, write_folder
from brickwork.brick.spec import explain
from brickwork.combine.stitch_results import (
    FORMAT,
    STITCH_FILE,
    TENSORS_FILE,
    StitchedMember,
    Stitching,
    stitching_problems,
)
from brickwork.combine.stitching import (
    Point,
    Stitch,
    StitchedFamily,
    require_pair,
    require_points,
    width_of,
)
from brickwork.errors import MergeError, ModelError, listed
from brickwork.measure.perplexity import instance_losses
from brickwork.model.cost import token_flops
from brickwork.model.load import LoadedModel
from brickwork.model.parts import CausalModel
from brickwork.model.stitched import StitchedModel
from brickwork.model.train import Encoded

Evaluation = Mapping[str, Sequence[Encoded]]


def measure_family(
    family: StitchedFamily,
    evaluation: Evaluation,
    *,
    untuned: Sequence[StitchedMember] = (),
    advance: Callable[[float], None] = lambda _members: None,
) -> tuple[StitchedMember, ...]:
    """Every member with its cost and its losses: the front, the stitched ones, the back.

    Args:
        family: any number of stitches.
        evaluation: held-out sequences of each functionality.
        untuned: what was measured before the maps were tuned; the ends are taken from it.
        advance: told of each member that is done.
    """
    before = {(str(m.kind), m.front, m.back): m for m in untuned}
    points = sorted([*family.ends, *(stitch.point for stitch in family.stitches)])
    whole = max(family.ends)
    maps = {stitch.point: stitch for stitch in family.stitches}
    members = []
    for point in [whole, *(p for p in points if p in maps), Point(0, 0)]:
        kind = "stitched" if point in maps else "front" if point == whole else "back"
        place = (point.front, 0 if kind == "front" else point.back)
        old = before.get((kind, *place))
        if old is not None and kind != "stitched":
            members.append(old)
        else:
            members.append(_member(family, point, kind, evaluation, old))
        advance(1)
    return tuple(members)


def _member(
    family: StitchedFamily,
    point: Point,
    kind: str,
    evaluation: Evaluation,
    before: StitchedMember | None,
) -> StitchedMember:
    model = family.model(point)
    parameters, flops = model_cost(model)
    stitch = next((s for s in family.stitches if s.point == point), None)
    return StitchedMember.model_validate({
        "kind": kind,
        "front": point.front,
        "back": 0 if kind == "front" else point.back,
        "parameters": parameters,
        "flops": flops,
        "losses": losses_of(model, evaluation),
        "untuned": before and before.losses,
        "explained": stitch and stitch.explained,
        "explained_median": stitch and stitch.explained_median,
    })  # fmt: skip


def model_cost(model: StitchedModel | CausalModel) -> tuple[int, int]:
    """Parameters, and operations for a token."""
    if isinstance(model, StitchedModel):
        return model.parameter_count(), model.token_flops()
    return sum(p.numel() for p in model.parameters()), token_flops(model)


def losses_of(model: CausalModel, evaluation: Evaluation) -> dict[str, float]:
    """Nats per response token, for each functionality."""
    found = {}
    for name, sequences in evaluation.items():
        losses = instance_losses(model, sequences)
        found[name] = float(losses.response.sum() / losses.response_tokens.sum())
    return found


def write_stitched(family: StitchedFamily, stitching: Stitching, folder: Path) -> None:
    """Write the maps and the document as a new folder: all of it, or nothing.

    Raises:
        ModelError: if something is there already.
    """
    require_free(folder, "a family of stitched models", ModelError)
    tensors = {
        f"{stitch.point}.{name}": tensor
        for stitch in family.stitches
        for name, tensor in (("weight", stitch.weight), ("bias", stitch.bias))
    }
    files = {
        STITCH_FILE: json_bytes(STITCH_FILE, stitching.model_dump(mode="json")),
        TENSORS_FILE: tensor_bytes(tensors),
    }
    write_folder(files, folder)


def read_stitching(folder: Path) -> Stitching:
    """The document in a folder.

    Raises:
        BrickFormatError: if there is no such file, or it is no JSON.
        MergeError: if it is of another format, lacks a field or contradicts itself.
    """
    document = read_json(folder, STITCH_FILE)
    if document.get("format") != FORMAT:
        raise MergeError(
            f"{folder / STITCH_FILE} should be of format {FORMAT}, but its format is "
            f"{document.get('format')!r}; read it with the version that wrote it, or stitch again."
        )
    try:
        stitching = Stitching.model_validate(document)
        problems = list(stitching_problems(stitching))
    except ValidationError as error:
        problems = [explain(error)]
    if problems:
        raise MergeError(
            f"{folder / STITCH_FILE} does not describe a family of stitched models; mend it or "
            f"stitch again:{listed(problems)}"
        )
    return stitching


def open_stitched(folder: Path, front: LoadedModel, back: LoadedModel) -> StitchedFamily:
    """The family that a folder holds the maps of.

    Args:
        folder: of ``write_stitched``.
        front: the model that it was made with as the front.
        back: the model that it was made with as the back.

    Raises:
        BrickFormatError: if a file is missing or damaged.
        MergeError: if these are not the models, or the maps do not fit them.
    """
    stitching = read_stitching(folder)
    problems = [
        f"as the {side}, {problem}"
        for side, wanted, found in (
            ("front", stitching.front, front), ("back", stitching.back, back)
        )
        for problem in fingerprint_misfits(wanted, found.base.fingerprint)
    ]  # fmt: skip
    if problems:
        raise MergeError(
            f"the stitches in {folder.name!r} are between {stitching.front.name!r} and "
            f"{stitching.back.name!r}, and were to be opened with {front.name!r} and "
            f"{back.name!r}; name those they were made with:{listed(problems)}"
        )
    require_pair(front, back)
    points = [Point(member.front, member.back) for member in stitching.of("stitched")]
    require_points(front, back, points)
    shape = width_of(back), width_of(front)
    tensors = read_tensors(folder, TENSORS_FILE)
    _require_maps(tensors, points, shape, folder)
    explained = {(m.front, m.back): (m.explained, m.explained_median) for m in stitching.members}
    stitches = tuple(
        Stitch(
            point, tensors[f"{point}.weight"], tensors[f"{point}.bias"],
            *explained[point.front, point.back],
        )
        for point in points
    )  # fmt: skip
    return StitchedFamily(front, back, stitches)


def _require_maps(
    tensors: Mapping[str, Tensor], points: Sequence[Point], shape: tuple[int, int], folder: Path
) -> None:
    """Refuse maps that are missing, too many, of other shapes or types, or not finite."""
    wanted: dict[str, tuple[int, ...]] = {}
    for point in points:
        wanted |= {f"{point}.weight": shape, f"{point}.bias": shape[:1]}
    problems = [f"{name} is not there" for name in sorted(wanted.keys() - tensors.keys())]
    problems += [f"{name} is not of a stitch" for name in sorted(tensors.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & tensors.keys()):
        tensor = tensors[name]
        if tuple(tensor.shape) != wanted[name] or tensor.dtype != torch.float32:
            problems.append(
                f"{name} is {tensor.dtype} {list(tensor.shape)}, not float32 {list(wanted[name])}"
            )
        elif not tensor.isfinite().all():
            problems.append(f"{name} holds NaN or infinity")
    if problems:
        raise MergeError(
            f"the stitches in {folder.name!r} are not those of its {STITCH_FILE}; copy the folder "
            f"again or stitch again:{listed(problems)}"
        )


def describe(
    family: StitchedFamily, members: Sequence[StitchedMember], about: Mapping[str, object]
) -> Stitching:
    """The document of a family.

    Args:
        family: what was measured.
        members: of ``measure_family``.
        about: how it came to be: the other fields of ``Stitching``.
    """
    return Stitching.model_validate({
        "brickwork": version("brickwork"),
        "front": family.front.base.fingerprint,
        "back": family.back.base.fingerprint,
        "members": tuple(members),
        **about,
    })  # fmt: skip
