"""The groups of a partition, as bricks, and what each of them is for."""

from collections.abc import Iterator

from brickwork.brick.brick import Brick
from brickwork.brick.partition import SHARED, Partition
from brickwork.brick.spec import BrickSpec, Function, Lineage
from brickwork.errors import ConfigurationError
from brickwork.model.load import LoadedModel


def best_functions(partition: Partition, layer: int) -> list[str]:
    """For each group the functionality that it serves most, compared with the layer's others.

    Empty where there is no profile.
    """
    if layer not in partition.profile:
        return []
    profile = partition.profile[layer]
    names = partition.spec.functions
    return [names[best] for best in (profile - profile.mean(0)).argmax(1).tolist()]


def group_bricks(partition: Partition, loaded: LoadedModel) -> Iterator[Brick]:
    """Each group as a brick that keeps the group, with the layer's shared neurons, and no other.

    Raises:
        ConfigurationError: if the partition is of another model.
    """
    base = loaded.base
    if (partition.spec.base.shapes, partition.spec.base.weights) != (
        base.fingerprint.shapes, base.fingerprint.weights
    ):  # fmt: skip
        raise ConfigurationError(
            f"the partition is of {partition.spec.base.name!r} with weights "
            f"{partition.spec.base.weights[:12]}, and the model has "
            f"{base.fingerprint.weights[:12]}; make a partition of this model."
        )
    ends = (".mlp.down", ".mlp.experts")
    sites = {s.layer: p for p, s in base.sites.items() if s.address.endswith(ends)}
    for layer, owners in partition.owners.items():
        best = best_functions(partition, layer)
        for group in range(partition.groups(layer)):
            spec = BrickSpec(
                name=f"layer-{layer}-group-{group}", form="mask", base=base.fingerprint,
                sites=(sites[layer],), origin="emergent", granularity="group",
                function=Function(labels=(best[group],) if best else ()),
                lineage=Lineage(
                    method=f"partition by {partition.spec.method}",
                    arguments={"layer": layer, "group": group, **partition.spec.arguments},
                    data=partition.spec.data,
                    parents=(partition.hash,),
                ),
            )  # fmt: skip
            keep = ((owners == group) | (owners == SHARED)).float()
            yield Brick(spec, {f"{sites[layer]}/keep": keep})
