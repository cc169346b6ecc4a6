"""Linear routers of a mixture of experts made from a dense model.

A router is a row for each group; a token goes to the groups whose rows have the largest products
with what the FFN reads.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from brickwork.brick.brick import Brick
from brickwork.brick.partition import Partition
from brickwork.errors import ConfigurationError
from brickwork.measure.centroids import weighted_centroids
from brickwork.model.ffn import FFN, ffn_of
from brickwork.model.parts import role_path
from brickwork.model.taps import output_norms

# The spread of a router's logits. An expert's weight is 1 up to about this much, and two experts
# whose logits differ by less than 2^-23 / SPREAD of the spread may change places in the choice.
SPREAD = 2.0**-19


@torch.no_grad()
def centroid_routers(
    model: PreTrainedModel, partition: Partition
) -> dict[int, Float[Tensor, "groups hidden"]]:
    """For every layer the direction of input that each group answers to, of length 1.

    Source:
        MoEfication's similarity router (Zhang et al. 2021, arXiv:2110.01786), with weights of ours:
        ``measure.centroids``. With 16 groups by balanced k-means of the gate rows of the reference
        model, 4 / 8 of them keep 0.59 / 0.78 of the energy ``sum (h_i |d_i|)^2``; rows of ``up``
        0.25 / 0.43, random groups 0.26 / 0.52, the best groups of each token 0.79 / 0.92.
    """
    return {
        layer: weighted_centroids(gated_ffn(model, layer), owner, output_norms(model, layer))
        for layer, owner in partition.owners.items()
    }


def gated_ffn(model: PreTrainedModel, layer: int) -> FFN:
    """The FFN of a layer of a family that has a target: one with a gate."""
    ffn = ffn_of(model, layer)
    assert isinstance(ffn, FFN), "a target's dense families have no experts"
    assert ffn.gate is not None, "a target's dense families have gated FFNs"
    return ffn


@torch.no_grad()
def hearing(model: PreTrainedModel, layer: int) -> Float[Tensor, " hidden"]:
    """About how large each entry of what the FFN of a layer reads is, known from the weights.

    After a norm it is the norm's weight. Without one it is the residual stream: the embeddings and
    what the parts below have added, each after its own norm.
    """
    norm = role_path(model, "norms.mlp", layer)
    if norm is not None:
        return model.get_parameter(f"{norm}.weight").float().abs()
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    energy = embedding.float().square().mean(0)
    for below in range(layer + 1):
        for role in ("norms.attn_out", "norms.mlp_out")[: 2 if below < layer else 1]:
            path = role_path(model, role, below)
            energy = energy + model.get_parameter(f"{path}.weight").float().square()
    return energy.sqrt()


@torch.no_grad()
def flat_router(
    router: Float[Tensor, "groups hidden"], heard: Float[Tensor, " hidden"]
) -> Float[Tensor, "groups hidden"]:
    """The same choice from logits so small that all experts weigh the same.

    What the rows have in common is taken away, since it moves all logits alike, and the rest is
    scaled by a power of two, which leaves every mantissa as it is.

    Args:
        router: a row for each group; at least one entry is not 0 after the common part is gone,
            or every choice is as good as another.
        heard: about how large each entry of the input is.

    Returns:
        A router whose logits spread by ``SPREAD`` (up to a factor of two) for such inputs.
    """
    rest = router.float() - router.float().mean(0)
    spread = (rest * heard.to(rest.device)).square().sum(1).mean().sqrt()
    if spread == 0:
        return rest
    return rest * 2.0 ** torch.log2(SPREAD / spread).floor()


def brick_routers(
    brick: Brick, model: PreTrainedModel, partition: Partition
) -> dict[int, Float[Tensor, "groups hidden"]]:
    """The linear routers that a router brick holds for the groups of a partition.

    Args:
        brick: of the form ``router``, fit for the model.
        model: the dense model.
        partition: the groups that the brick must be about.

    Raises:
        ConfigurationError: if the brick is no linear router, is about other groups, or leaves out
            a layer.
    """
    found = {}
    for layer, owner in partition.owners.items():
        slots = brick.by_site.get(role_path(model, "mlp.down", layer) or "", {})
        if brick.spec.form != "router" or "weight" not in slots:
            raise ConfigurationError(
                f"a mixture of experts takes a linear router for every layer, but the "
                f"{brick.spec.form} brick {brick.spec.name!r} has {' + '.join(slots) or 'nothing'} "
                f"in layer {layer}; give a router brick with owner + weight in all layers."
            )
        if not torch.equal(slots["owner"].cpu().long(), owner.cpu().long()):
            raise ConfigurationError(
                f"the router brick {brick.spec.name!r} is about other groups than the partition "
                f"(layer {layer} differs); train it on this partition."
            )
        found[layer] = slots["weight"]
    return found
