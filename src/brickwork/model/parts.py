"""The weights behind a role: a whole linear map, or some outputs of a fused one."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from brickwork.errors import ModelError
from brickwork.model.architecture import (
    FFN_ROLES,
    FUSED_ROLES,
    Architecture,
    ExpertsRow,
    FfnRow,
    architecture_for,
)
from brickwork.model.heads import Heads, heads_of

# What the rooms that have no door to transformers call a model of it.
CausalModel = PreTrainedModel


@dataclass(frozen=True)
class Slice:
    """Some entries along one axis of a parameter, or all of it.

    Attributes:
        parameter: parameter path.
        axis: axis of the parameter that ``indices`` count along.
        indices: the chosen entries; None is the whole parameter.
        expert: in a parameter with one matrix per expert, the entry of axis 0 that is meant.
    """

    parameter: str
    axis: int = 0
    indices: tuple[int, ...] | None = None
    expert: int | None = None

    def of(self, parameter: Tensor) -> Tensor:
        """The chosen entries of that parameter, as a copy; the expert's axis is gone."""
        if self.indices is None:
            return parameter.clone()
        matrix = parameter if self.expert is None else parameter[self.expert]
        axis = self.axis - (self.expert is not None)
        return matrix.index_select(axis, parameter.new_tensor(self.indices).long())


@dataclass(frozen=True)
class Part:
    """Where the weights of one role are.

    Attributes:
        module: module path of the linear map.
        outputs: the outputs of that map that belong to the role.
        out_axis: axis of the outputs in the map's weight; the inputs are on the other one.
        biased: whether the map has a bias.
    """

    module: str
    outputs: Sequence[int]
    out_axis: int
    biased: bool

    @property
    def weight(self) -> str:
        """The parameter path of the weight."""
        return f"{self.module}.weight"

    @property
    def bias(self) -> str | None:
        """The parameter path of the bias, None where there is none."""
        return f"{self.module}.bias" if self.biased else None

    def rows(self, units: Sequence[int]) -> list[Slice]:
        """The weights and biases that make these outputs of the role."""
        outputs = tuple(self.outputs[unit] for unit in units)
        weight = Slice(self.weight, self.out_axis, outputs)
        return [weight, Slice(self.bias, 0, outputs)] if self.bias else [weight]

    def columns(self, units: Sequence[int]) -> Slice:
        """The weights that read these inputs."""
        return Slice(self.weight, 1 - self.out_axis, tuple(units))


def row_of(model: PreTrainedModel) -> Architecture:
    """The row of the model's family.

    Raises:
        UnknownNameError: if no row describes it.
    """
    return architecture_for(model.config.model_type)


def find_module(model: nn.Module, path: str | None) -> nn.Module | None:
    """The module at a path, None if there is none."""
    try:
        return model.get_submodule(path) if path else None
    except AttributeError:
        return None


def path_of(model: nn.Module, module: nn.Module | None) -> str | None:
    """The path of a module of the model, None if it is none of them."""
    return next((path for path, other in model.named_modules() if other is module), None)


def role_path(model: PreTrainedModel, role: str, layer: int | None) -> str | None:
    """The path of a role's module; None if the family's row has no such role."""
    if role == "unembed":
        return path_of(model, model.get_output_embeddings())
    return row_of(model).path(role, layer)


def layers_of(model: PreTrainedModel) -> int:
    """The number of decoder blocks."""
    blocks = model.get_submodule(row_of(model).blocks)
    assert isinstance(blocks, nn.ModuleList)
    return len(blocks)


def ffn_row_of(model: PreTrainedModel, layer: int) -> FfnRow:
    """The form that the FFN of a layer has.

    Raises:
        ModelError: if the layer has none of the forms that its family is known to have.
    """
    row = row_of(model)
    for ffn in row.ffn:
        if all(find_module(model, row.path(role, layer)) for role in FFN_ROLES[ffn.form]):
            return ffn
    raise ModelError(
        f"layer {layer} of this {row.model_type} model has no FFN of the form "
        f"{' or '.join(ffn.form for ffn in row.ffn)}; its modules do not match the family's row."
    )


def experts_row_of(model: PreTrainedModel, layer: int) -> ExpertsRow:
    """Where the experts of an MoE layer are, with the layer's number in the paths."""
    row = row_of(model).experts
    assert row is not None, "a row with moe_gated FFNs says where the experts are"
    number = str(layer)
    return ExpertsRow(
        gate_up=row.gate_up.replace("{layer}", number),
        down=row.down.replace("{layer}", number),
        top_k=row.top_k,
    )


def find_part(model: PreTrainedModel, role: str, layer: int) -> Part | None:
    """Where the weights of a linear role are, also inside a fused map; None if there are none."""
    row = row_of(model)
    container, place = FUSED_ROLES.get(role, ("", 0))
    path = row.path(role, layer) or row.path(container, layer)
    module = find_module(model, path)
    if module is None or path is None:
        return None
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    out_axis = 0 if row.orientation == "out in" else 1
    size = weight.shape[out_axis]
    if role in row.roles:
        outputs: Sequence[int] = range(size)
    elif container == "mlp.gate_up":
        outputs = range(place * size // 2, (place + 1) * size // 2)
    else:
        heads = heads_of(model.config, layer)
        interleaved = row.fused[container] == "interleaved"
        outputs = _attention_outputs(place, size, heads, interleaved=interleaved)
    return Part(path, outputs, out_axis, getattr(module, "bias", None) is not None)


def part_of(model: PreTrainedModel, role: str, layer: int) -> Part:
    """As ``find_part``, for a role that must be there."""
    part = find_part(model, role, layer)
    if part is None:
        raise ModelError(
            f"layer {layer} of this {model.config.model_type} model has no {role!r}; its modules "
            "do not match the family's row."
        )
    return part


def _attention_outputs(place: int, size: int, heads: Heads, *, interleaved: bool) -> Sequence[int]:
    """The outputs of a fused attention map that are its queries (0), keys (1) or values (2)."""
    width = heads.head_dim
    if interleaved:
        starts = [(3 * head + place) * width for head in range(heads.heads)]
        return [start + i for start in starts for i in range(width)]
    keys = heads.kv_heads * width
    first = (0, size - 2 * keys, size - keys)[place]
    return range(first, first + (keys if place else size - 2 * keys))
