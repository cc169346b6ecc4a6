"""What a model costs to run, from its shapes alone."""

from torch import nn
from transformers import PreTrainedModel

from brickwork.model.parts import experts_row_of, ffn_row_of, layers_of


def token_flops(model: PreTrainedModel) -> int:
    """Multiplications and additions that one token needs in linear maps and experts.

    Two for every weight that is read. Embeddings, norms and the products of queries with keys and
    values are left out; of experts, those that the router picks are counted.
    """
    total = sum(
        parameter.numel()
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
        if parameter.dim() == 2
    )
    for layer in range(layers_of(model)):
        if ffn_row_of(model, layer).form == "moe_gated":
            row = experts_row_of(model, layer)
            up, down = model.get_parameter(row.gate_up), model.get_parameter(row.down)
            picked = getattr(model.config.get_text_config(), row.top_k)
            total += (up.numel() + down.numel()) * picked // len(up)
    return 2 * total
