"""Keys: what a plain hook sees at the token, for any family, whatever else is in the batch."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from brickwork.errors import EditError
from brickwork.model.parts import part_of, role_path
from brickwork.update.contexts import Placed
from brickwork.update.keys import edit_path, norm_follows, recall, residual_scale
from tests.tiny import FAMILIES, tiny_model

PROMPTS = (
    Placed((5, 9, 13, 7, 21, 3), 5),
    Placed((17, 6), 0),
    Placed((3, 90, 44, 50), 2),
)
EDITED = [family for family in FAMILIES if family != "mixtral"]


@pytest.mark.parametrize("family", EDITED)
def test_keys_values_and_states_equal_plain_hooks_without_padding(family: str) -> None:
    model = tiny_model(family)
    found = recall(model, PROMPTS, 0, block=1)
    down = model.get_submodule(part_of(model, "mlp.down", 0).module)
    block = model.get_submodule(role_path(model, "block", 1) or "")
    seen = SimpleNamespace()
    down.register_forward_hook(lambda _m, args, out: seen.__dict__.update(k=args[0], v=out))
    block.register_forward_hook(lambda _m, _args, out: seen.__dict__.update(s=out))
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            model(torch.tensor([prompt.ids]))
        for mine, other in ((found.keys, seen.k), (found.values, seen.v), (found.states, seen.s)):
            expected = other.reshape(len(prompt.ids), -1)[prompt.position]
            # The same float32 sums in another order.
            torch.testing.assert_close(mine[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2"])
def test_a_small_change_of_a_value_reaches_the_stream_as_the_scale_says(family: str) -> None:
    model = tiny_model(family)
    assert norm_follows(model, 0) is (family != "llama")
    before = recall(model, PROMPTS, 0)
    scale = residual_scale(model, 0, before.values)
    # At a right angle to the value, so that a norm's scale stays to first order.
    noise = torch.randn(before.values.shape, generator=torch.Generator().manual_seed(0))
    along = (noise * before.values).sum(1, keepdim=True) / before.values.square().sum(
        1, keepdim=True
    )
    change = 1e-3 * (noise - along * before.values)
    down = model.get_submodule(part_of(model, "mlp.down", 0).module)
    for row, prompt in enumerate(PROMPTS):

        def add(_module: object, _args: object, out: Tensor, row: int = row) -> Tensor:
            return out + change[row]

        hook = down.register_forward_hook(add)
        after = recall(model, [prompt], 0)
        hook.remove()
        moved = after.states[0] - before.states[row]
        # Second order in a change of a thousandth, and float32 differences.
        torch.testing.assert_close(moved, scale[row] * change[row], rtol=0.02, atol=2e-5)


def test_a_layer_of_experts_or_none_is_refused() -> None:
    with pytest.raises(EditError, match=r"layer 1 is one of experts.* such as grace"):
        edit_path(tiny_model("mixtral"), 1)
    with pytest.raises(EditError, match="layers 0 to 1; choose one of those"):
        edit_path(tiny_model("llama"), 2)
    assert edit_path(tiny_model("qwen3_moe"), 0) == "model.layers.0.mlp.down_proj"
