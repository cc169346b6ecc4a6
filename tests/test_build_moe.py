"""Export as a mixture of experts: what every target promises, against the dense model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from brickwork.brick.base import Fingerprint
from brickwork.brick.partition import Partition, PartitionSpec
from brickwork.build.moe import export_moe, plan_moe
from brickwork.build.moe_targets import MOE_TARGETS, MoeSizes, choose_target
from brickwork.errors import ConfigurationError, ModelError, UnknownNameError
from brickwork.model.export import write_checkpoint
from brickwork.model.ffn import ffn_of
from brickwork.model.load import load_model, wrap_model
from tests.moe import choices, dense, divide, masked, said
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

# What a row with and without a shared group is tried with: groups, shared neurons.
PLAIN, SHARING = (4, 0), (4, 16)
CASES = [
    (family, target.model_type, *sizes)
    for target in MOE_TARGETS.values()
    for family in target.dense
    for sizes in (PLAIN, SHARING)
    if (target.shared != "never" or sizes == PLAIN)
    and (target.shared != "always" or sizes == SHARING)
    # Their tiny models have windows, which GLM 4 has not; see below.
    and not (target.model_type == "glm4_moe" and family in {"mistral", "phi3"})
]


@pytest.mark.parametrize(("family", "target", "groups", "shared"), CASES)
def test_written_and_loaded_it_says_what_the_dense_model_says(
    family: str, target: str, groups: int, shared: int, tmp_path: Path
) -> None:
    loaded = dense(family)
    partition = divide(loaded, groups, shared)
    whole = export_moe(loaded, partition, target=target)
    # Weights of experts are 1 up to the spread of the routers' logits.
    torch.testing.assert_close(said(whole), said(loaded.model), atol=1e-4, rtol=0)

    some = export_moe(loaded, partition, target=target, top_k=2)
    write_checkpoint(some, tmp_path / "some", tokenizer=loaded.tokenizer)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "some")
    assert read.config.model_type == target
    with choices(read) as chosen:
        found = said(read)
    assert all(picked.shape[1] == 2 for picked in chosen.values())
    torch.testing.assert_close(found, masked(loaded, partition, chosen), atol=1e-4, rtol=0)
    assert (found - said(loaded.model)).abs().max() > 0.01  # the masks do something
    assert AutoTokenizer.from_pretrained(tmp_path / "some").get_vocab() == (
        tiny_tokenizer().get_vocab()
    )


@pytest.mark.parametrize("target", [t for t in MOE_TARGETS if MOE_TARGETS[t].any_top_k])
def test_another_top_k_needs_no_other_export(target: str) -> None:
    loaded = dense(MOE_TARGETS[target].dense[0])
    partition = divide(loaded, *(SHARING if MOE_TARGETS[target].shared == "always" else PLAIN))
    model = export_moe(loaded, partition, target=target, top_k=4)
    for layer in range(2):
        vars(model.get_submodule(f"model.layers.{layer}.mlp.gate"))["top_k"] = 1
    with choices(model) as chosen:
        found = said(model)
    torch.testing.assert_close(found, masked(loaded, partition, chosen), atol=1e-4, rtol=0)


def test_mixtral_weighs_right_for_its_own_top_k_alone() -> None:
    loaded = dense("llama")
    model = export_moe(loaded, divide(loaded), target="mixtral", top_k=4)
    router = model.get_submodule("model.layers.0.mlp.gate")
    vars(router)["top_k"] = 2
    _, weights, _ = router(torch.randn(3, 32))
    # Of experts scaled by 4: each weighs 2.
    torch.testing.assert_close(weights, torch.full((3, 2), 0.5), atol=1e-4, rtol=0)
    assert not MOE_TARGETS["mixtral"].any_top_k


NAMES = {
    "qwen2_moe": ("mlp.experts.3.gate_proj.weight", "mlp.gate.weight", "self_attn.q_proj.bias",
                  "mlp.shared_expert.up_proj.weight", "mlp.shared_expert_gate.weight"),
    "qwen3_moe": ("mlp.experts.3.up_proj.weight", "mlp.gate.weight", "self_attn.q_norm.weight"),
    "flex_olmo": ("mlp.experts.3.down_proj.weight", "mlp.gate.weight",
                  "post_feedforward_layernorm.weight"),
    "glm4_moe": ("mlp.experts.3.down_proj.weight", "mlp.gate.weight",
                 "mlp.gate.e_score_correction_bias", "mlp.shared_experts.gate_proj.weight"),
    "mixtral": ("block_sparse_moe.experts.3.w1.weight", "block_sparse_moe.experts.3.w2.weight",
                "block_sparse_moe.experts.3.w3.weight", "block_sparse_moe.gate.weight"),
}  # fmt: skip


@pytest.mark.parametrize("target", MOE_TARGETS)
def test_tensors_on_disk_have_the_names_of_published_checkpoints(
    target: str, tmp_path: Path
) -> None:
    row = MOE_TARGETS[target]
    loaded = dense(row.dense[0])
    partition = divide(loaded, *(PLAIN if row.shared == "never" else SHARING))
    write_checkpoint(export_moe(loaded, partition, target=target, top_k=2), tmp_path / "m")
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert {f"model.layers.1.{name}" for name in NAMES[target]} <= names
        assert not any(name.endswith("gate_up_proj") for name in names)
        # Expert 3 is group 3 of the partition, as vLLM will read it.
        place = next(n for n in sorted(names) if ".1." in n and ("3.gate_proj" in n or "3.w1" in n))
        ffn: Any = ffn_of(loaded.model, 1)
        assert torch.equal(file.get_tensor(place), ffn.gate[partition.members(1)[3]])
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["num_experts_per_tok"] == 2
    assert config["architectures"] == [type(AutoModelForCausalLM.from_config(
        plan_moe(loaded, partition, target=target).config)).__name__]  # fmt: skip


def test_bfloat16_is_written_and_computes_as_the_dense_model(tmp_path: Path) -> None:
    loaded = wrap_model(tiny_model("llama").to(torch.bfloat16), None, "llama")
    model = export_moe(loaded, divide(loaded, shared=16))
    write_checkpoint(model, tmp_path / "m")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert read.dtype == torch.bfloat16
    # The weights are 1 to the bit; sums of 4 experts are rounded to 8 bits one after the other.
    _, weights, _ = read.model.layers[0].mlp.gate(torch.randn(5, 32, dtype=torch.bfloat16))
    assert torch.equal(weights, torch.full_like(weights, 0.25))
    gap = (said(read) - said(loaded.model)).abs()
    assert gap.mean() < 0.02 * said(loaded.model).std()


def test_what_both_families_have_is_carried_over(tmp_path: Path) -> None:
    loaded = dense("mistral")
    loaded.model.config.rope_parameters = {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    }  # fmt: skip
    loaded.model.generation_config.eos_token_id = [1, 5]
    rebuilt = AutoModelForCausalLM.from_config(loaded.model.config)
    rebuilt.load_state_dict(loaded.model.state_dict())
    rebuilt.generation_config = loaded.model.generation_config
    loaded = wrap_model(rebuilt.eval(), None, "mistral")
    write_checkpoint(export_moe(loaded, divide(loaded)), tmp_path / "m")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert read.config.rope_parameters == loaded.model.config.rope_parameters
    assert read.config.head_dim == 16
    assert read.config.layer_types == ["sliding_attention"] * 2
    assert read.config.sliding_window == 4
    assert read.generation_config.eos_token_id == [1, 5]
    torch.testing.assert_close(said(read), said(loaded.model), atol=1e-4, rtol=0)


def test_tied_embeddings_stay_tied_and_nothing_is_shared_with_the_dense_model() -> None:
    loaded = dense("qwen2")
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    model = export_moe(loaded, divide(loaded))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())


def test_brickwork_reads_a_mixture_of_a_family_that_it_knows(tmp_path: Path) -> None:
    loaded = dense("qwen3")
    write_checkpoint(
        export_moe(loaded, divide(loaded), top_k=2), tmp_path / "m", tokenizer=loaded.tokenizer
    )
    read = load_model(str(tmp_path / "m"))
    assert read.architecture is not None
    ffn: Any = ffn_of(read.model, 0)
    assert len(ffn.experts) == 4
    assert read.base.fingerprint.tokenizer == loaded.base.fingerprint.tokenizer


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in {"mixtral", "qwen3_moe"}])
def test_a_family_has_a_target_or_is_refused_with_the_reason(family: str) -> None:
    loaded = dense(family)
    if any(family in row.dense for row in MOE_TARGETS.values()):
        plan = plan_moe(loaded, divide(loaded), top_k=1)
        assert family in plan.target.dense
        assert plan.sizes == MoeSizes(4, 12, 0, 1)
        return
    with pytest.raises(ModelError, match=rf"a {family} model cannot be written .*: (its|norms) "):
        plan_moe(loaded, divide(loaded))


def test_parameters_are_those_of_the_model_that_is_made() -> None:
    loaded = dense("llama")
    plan = plan_moe(loaded, divide(loaded, shared=16), top_k=1)
    model = export_moe(loaded, divide(loaded, shared=16), top_k=1)
    assert plan.parameters == sum(p.numel() for p in model.parameters())
    assert plan.parameters - plan.active == 2 * 3 * (3 * 8 * 32)  # layers, idle experts, each


@pytest.mark.parametrize(
    ("family", "groups", "shared", "target"),
    [
        ("llama", 4, 0, "qwen2_moe"), ("llama", 4, 16, "qwen2_moe"), ("qwen3", 4, 0, "qwen3_moe"),
        ("qwen3", 4, 16, "glm4_moe"), ("olmo2", 4, 0, "flex_olmo"), ("phi3", 4, 16, "qwen2_moe"),
    ],
)  # fmt: skip
def test_the_first_target_that_fits_is_taken(
    family: str, groups: int, shared: int, target: str
) -> None:
    loaded = dense(family)
    assert plan_moe(loaded, divide(loaded, groups, shared)).target.model_type == target


def refused(message: str, family: str, *, shared: int = 0, target: str | None = None) -> None:
    loaded = dense(family)
    with pytest.raises(ConfigurationError, match=message):
        plan_moe(loaded, divide(loaded, 4, shared), target=target)


def test_a_target_that_misfits_says_why_and_names_one_that_fits() -> None:
    refused(
        r"(?s)cannot be written as qwen3_moe; choose glm4_moe:.*no shared expert, and 16",
        "qwen3", shared=16, target="qwen3_moe",
    )  # fmt: skip
    refused(r"(?s)qwen2_moe: it has the block of llama, mistral", "qwen3", target="qwen2_moe")
    refused(r"(?s)make a partition .*flex_olmo: it has no shared expert", "olmo2", shared=8)
    refused(r"always has a shared expert", "qwen3", target="glm4_moe")
    refused(r"see all tokens, the model's only 4", "mistral", shared=16, target="glm4_moe")
    refused(r"8 is no multiple of 10", "qwen3", shared=8)
    with pytest.raises(UnknownNameError, match="did you mean 'qwen2_moe'"):
        plan_moe(dense("llama"), divide(dense("llama")), target="qwen2_mo")


CHANGES: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"attention_bias": True}, "no bias on the output"),
    ("llama", {"mlp_bias": True}, "experts have no biases"),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 4,
               "layer_types": ["sliding_attention", "full_attention"]}, "equally far back"),
    ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                  "partial_rotary_factor": 0.5}}, "rotates whole heads"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "message"), CHANGES)
def test_what_a_target_cannot_express_is_refused(
    family: str, changes: dict[str, Any], message: str
) -> None:
    config = FAMILIES[family]()
    config.update(changes)
    with pytest.raises(ConfigurationError, match=message):
        choose_target(config, MoeSizes(4, 12, 0, 4))


def test_partly_rotated_heads_fit_where_the_target_has_them_too() -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    loaded = dense("phi3", rope_parameters=rope, sliding_window=None)
    model = export_moe(loaded, divide(loaded, shared=16))
    assert model.config.model_type == "glm4_moe"
    torch.testing.assert_close(said(model), said(loaded.model), atol=1e-4, rtol=0)


def test_mixed_windows_are_kept_where_the_target_has_them_too() -> None:
    kinds = ["sliding_attention", "full_attention"]
    loaded = dense("qwen2", use_sliding_window=True, sliding_window=4, layer_types=kinds)
    model = export_moe(loaded, divide(loaded))
    assert model.config.layer_types == kinds
    torch.testing.assert_close(said(model), said(loaded.model), atol=1e-4, rtol=0)
    assert MOE_TARGETS["qwen2_moe"].server(loaded.model.config) == [
        "layers are taken to see equally far back, these do not"
    ]


def test_groups_of_several_sizes_are_refused() -> None:
    loaded = dense("llama")
    owners = divide(loaded).owners
    spec = PartitionSpec(base=loaded.base.fingerprint, method="by hand")
    uneven = owners[1].clone()
    uneven[uneven == 3] = 2
    for layers in ({0: owners[0], 1: uneven}, {0: uneven, 1: uneven}):
        with pytest.raises(ConfigurationError, match="3 groups of 12 or 24 neurons, 0 shared"):
            plan_moe(loaded, Partition(spec, layers))
    with pytest.raises(ConfigurationError, match=r"in all 2 layers, .* in 1 \(0\)"):
        plan_moe(loaded, Partition(spec, {0: owners[0]}))
    with pytest.raises(ConfigurationError, match=r"5 experts .* choose from 1 to 4"):
        plan_moe(loaded, divide(loaded), top_k=5)


def test_experts_that_transformers_cannot_multiply_are_refused() -> None:
    loaded = wrap_model(tiny_model("llama").to(torch.bfloat16), None, "llama")
    with pytest.raises(ConfigurationError, match=r"12 neurons .* multiple of 8 in bfloat16"):
        plan_moe(loaded, divide(loaded))


def test_a_partition_of_another_model_is_refused() -> None:
    other = wrap_model(tiny_model("llama", seed=1), tiny_tokenizer(), "other")
    with pytest.raises(ConfigurationError, match=r"(?s)another model than 'llama'.*weights differ"):
        export_moe(dense("llama"), divide(other))


def test_a_folder_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    loaded = dense("llama")
    (tmp_path / "m").mkdir()
    with pytest.raises(ModelError, match="which is there already"):
        write_checkpoint(export_moe(loaded, divide(loaded)), tmp_path / "m")
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = dense("llama")
    model = export_moe(loaded, divide(loaded))

    def fail(*_args: object, **_named: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(type(loaded.tokenizer), "save_pretrained", fail)
    with pytest.raises(ModelError, match="disk full"):
        write_checkpoint(model, tmp_path / "m", tokenizer=loaded.tokenizer)
    assert not list(tmp_path.iterdir())


def test_float16_is_refused() -> None:
    loaded = wrap_model(tiny_model("llama").to(torch.float16), None, "llama")
    with pytest.raises(ModelError, match="too small for float16; load the model in bfloat16"):
        export_moe(loaded, divide(loaded))


def test_the_fingerprint_of_a_partition_is_not_taken_on_trust() -> None:
    loaded = dense("llama")
    made_up = Fingerprint(architecture="llama", shapes="0" * 64, weights="0" * 64)
    partition = Partition(PartitionSpec(base=made_up, method="random"), divide(loaded).owners)
    with pytest.raises(ConfigurationError, match="other names or shapes"):
        export_moe(loaded, partition)
