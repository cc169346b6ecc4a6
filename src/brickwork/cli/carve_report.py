"""What ``brickwork carve`` found, as the document and the page of the report room."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brickwork.measure.choice import Choice
    from brickwork.measure.selection_results import LayerKept
    from brickwork.model.load import LoadedModel


def write_report(
    loaded: "LoadedModel",
    choice: "Choice",
    document: Mapping[str, Any],
    data: str,
    seed: int,
    folder: Path,
) -> list[str]:
    """Write ``carving.json`` and ``carving.html`` with its figures; the names of the files."""
    from brickwork.brick.durable import write_file
    from brickwork.brick.files import json_bytes
    from brickwork.measure.selection_results import CARVING_FILE, Carving
    from brickwork.report.selection import write_carving_report

    losses, sizes = document["losses"], document["size"]

    def column(*names: str) -> dict[str, float] | None:
        held = [name for name in names if name in next(iter(losses.values()))]
        return {f: own[held[-1]] for f, own in losses.items()} if held else None

    carving = Carving(
        brickwork=version("brickwork"),
        model=loaded.name,
        fingerprint=loaded.base.fingerprint.weights,
        data=data,
        target=document["for"],
        units=choice.units,
        by=choice.method,
        density=choice.density,
        widths=choice.widths,
        seed=seed,
        layers=tuple(_layers(loaded, choice)),
        instances=sum(document["measured_on"].values()),
        before=column("before") or {},
        after=column("kept", "compensated") or {},
        random=column("random") or {},
        healed=column("healed"),
        parameters=tuple(sizes[when]["parameters"] for when in ("before", "after")),
        flops=tuple(sizes[when]["flops_per_token"] for when in ("before", "after")),
    )
    pages = write_carving_report([carving], folder)
    write_file(folder / CARVING_FILE, json_bytes(CARVING_FILE, carving.model_dump(mode="json")))
    return [CARVING_FILE, *(str(path.relative_to(folder)) for path in pages)]


def _layers(loaded: "LoadedModel", choice: "Choice") -> "list[LayerKept]":
    from brickwork.measure.selection_results import LayerKept
    from brickwork.model.parts import layers_of
    from brickwork.model.units import unit_counts

    kept, found = choice.kept, []
    for layer in range(layers_of(loaded.model)):
        counts = unit_counts(loaded.model, layer)
        neurons, heads = counts["mlp.neurons"], counts["attn.kv_heads"]
        skipped = kept.layers is not None and layer not in kept.layers
        own = len(kept.neurons.get(layer, range(neurons)))
        if layer in kept.experts:
            own = len(kept.experts[layer]) * neurons // counts["mlp.experts"]
        found.append(
            LayerKept(
                layer=layer,
                neurons=0 if skipped else own,
                of_neurons=neurons,
                kv_heads=0 if skipped else len(kept.kv_heads.get(layer, range(heads))),
                of_kv_heads=heads,
                skipped=skipped,
            )
        )
    return found
