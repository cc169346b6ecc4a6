"""What PEFT loads without a word, or would lose: refused, with the reason."""

import json
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from brickwork.brick.brick import Brick
from brickwork.brick.check import misfits, problems, require_fit
from brickwork.brick.folder import read_peft, write_brick
from brickwork.errors import BrickFormatError, BrickworkError, MisfitError
from brickwork.model.load import wrap_model
from tests.bricks import paper_base, random_brick
from tests.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
BASE = paper_base()
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def llama(layers: int = 2) -> PreTrainedModel:
    config = tiny_model("llama").config
    config.num_hidden_layers = layers
    generator_state = torch.get_rng_state()
    model = type(tiny_model("llama"))(config)
    torch.set_rng_state(generator_state)
    return model


def saved(config: PeftConfig, folder: Path, model: PreTrainedModel | None = None) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(model or tiny_model("llama"), config).save_pretrained(folder)
    return folder


def edit(folder: Path, **fields: Any) -> Path:
    document = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**document, **fields}))
    return folder


def drop(folder: Path, field: str) -> Path:
    document = json.loads((folder / CONFIG).read_text())
    del document[field]
    (folder / CONFIG).write_text(json.dumps(document))
    return folder


def refused(folder: Path, reason: str, layers: int = 2) -> None:
    base = wrap_model(tiny_model("llama") if layers == 2 else llama(layers)).base
    with pytest.raises(BrickworkError) as refusal:
        read_peft(folder, base, "x")
    assert reason in str(refusal.value), str(refusal.value)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return saved(LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), tmp_path / "adapter")


LORA: dict[str, Any] = {"r": 2, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (LoraConfig(**LORA, use_dora=True), "use_dora"),
        (LoraConfig(**LORA, modules_to_save=["lm_head"]), "modules_to_save"),
        (LoraConfig(**LORA, modules_to_save=["norm"]), "modules_to_save"),
        (LoraConfig(**LORA, bias="all"), "was trained with bias 'all'"),
        (LoraConfig(**LORA, bias="lora_only"), "was trained with bias 'lora_only'"),
        (LoraConfig(**LORA, trainable_token_indices=[1, 2]), "trainable_token_indices"),
        (LoraConfig(**LORA, lora_bias=True), "lora_bias"),
        (LoraConfig(**LORA, layer_replication=[(0, 2), (0, 2)]), "layer_replication"),
        (LoraConfig(**LORA, alora_invocation_tokens=[1], task_type="CAUSAL_LM"), "alora"),
        (LoraConfig(**LORA, init_lora_weights="pissa"), "changes the base's weights as well"),
        (LoraConfig(**LORA, init_lora_weights="olora"), "changes the base's weights as well"),
        (LoraConfig(r=2, target_modules=["embed_tokens"]), "embed_tokens"),
        (LoraConfig(r=2, target_modules=["q_proj", "lm_head"]), "lm_head.base_layer.weight"),
        (LoraConfig(**LORA, rank_pattern={".*q_proj": 3}), "is a regular expression"),
        (LoraConfig(**LORA, alpha_pattern={"(q|v)_proj": 3}), "is a regular expression"),
        (
            LoraConfig(**LORA, target_parameters=["self_attn.k_proj.weight"]),
            "target_parameters",
        ),
        (IA3Config(target_modules=["q_proj"], feedforward_modules=[], modules_to_save=["norm"]),
         "modules_to_save"),
        (AdaLoraConfig(target_modules=["q_proj"], total_step=10), "type 'ADALORA' is not"),
        (PromptEncoderConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), "type 'P_TUNING'"),
    ],
)  # fmt: skip
def test_refuses_an_adapter_that_is_more_than_a_brick_can_hold(
    config: PeftConfig, reason: str, tmp_path: Path
) -> None:
    try:
        folder = saved(config, tmp_path / "adapter")
    except (TypeError, ValueError, NotImplementedError):
        pytest.fail("PEFT cannot make this adapter: the case proves nothing")
    refused(folder, reason)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"r": 8}, "says rank 8 at 'model.layers.0.self_attn.q_proj', its tensor has rank 4"),
        ({"rank_pattern": {"v_proj": 3}}, "says rank 3 at 'model.layers.0.self_attn.v_proj'"),
        ({"rank_pattern": {"q_proj|v_proj": 4}}, "is a regular expression"),
        ({"rank_pattern": {"(a+)+$": 4}}, "is a regular expression"),
        ({"rank_pattern": [4]}, "rank_pattern: Input should be a valid dictionary"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern.q_proj"),
        ({"lora_alpha": None}, "lora_alpha: Input should be a valid number"),
        ({"r": "four"}, "r: Input should be a valid integer, unable to parse"),
        ({"use_rslora": 7}, "use_rslora"),
        ({"init_lora_weights": "mica"}, "initialised by 'mica'"),
        ({"init_lora_weights": "loftq"}, "initialised by 'loftq'"),
        ({"init_lora_weights": "pissa_niter_4"}, "initialised by 'pissa_niter_4'"),
        ({"field_of_tomorrow": 1}, "the adapter uses field_of_tomorrow, which a plain LoRA brick"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"use_qalora": True}, "use_qalora"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config"),
        ({"velora_config": {"num_groups": 3}}, "velora_config"),
        ({"monteclora_config": {"num_samples": 3}}, "monteclora_config"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying"),
        ({"target_modules": None}, "does not say where it sits: target_modules"),
        ({"target_modules": []}, "which its configuration does not target"),
        ({"target_modules": {"q_proj": 1}}, "does not say where it sits: target_modules"),
        ({"target_modules": ["q_proj"]}, "a tensor at 'model.layers.0.self_attn.v_proj', which"),
        ({"exclude_modules": ["q_proj"]}, "a tensor at 'model.layers.0.self_attn.q_proj', which"),
        ({"exclude_modules": r".*\.1\..*"}, "a tensor at 'model.layers.1.self_attn.q_proj', which"),
        ({"layers_to_transform": [0]}, "a tensor at 'model.layers.1.self_attn.q_proj', which"),
        ({"layers_to_transform": 0}, "a tensor at 'model.layers.1.self_attn.q_proj', which"),
        ({"layers_to_transform": [0], "layers_pattern": "(layers"}, "is not a module's name"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]},
         "also targets model.layers.0.self_attn.o_proj, where it has no tensors"),
        ({"target_modules": "all-linear"}, "also targets model.layers.0.self_attn.k_proj"),
        ({"target_modules": r".*(q|v)_proj|.*\.down_proj"}, "also targets model.layers.0.mlp.down"),
        ({"target_modules": "(?!x).*_proj"}, "is not one that can be matched safely"),
        ({"target_modules": "("}, "is not one that can be matched safely"),
        ({"peft_type": None}, "a PEFT adapter of type None is not supported"),
        ({"peft_type": ["LORA"]}, "a PEFT adapter of type ['LORA'] is not supported"),
        ({"peft_type": "lora"}, "supported: IA3, LORA, PREFIX_TUNING, PROMPT_TUNING"),
        ({"peft_type": "IA3"}, "which a plain IA3 brick would"),
        ({"peft_type": "PREFIX_TUNING"}, "which a plain prefix brick would lose"),
    ],
)  # fmt: skip
def test_refuses_a_configuration_that_does_not_describe_the_tensors(
    fields: dict[str, Any], reason: str, adapter: Path
) -> None:
    refused(edit(adapter, **fields), reason)


@pytest.mark.parametrize("field", ["peft_type", "target_modules"])
def test_refuses_a_configuration_without_what_it_needs(field: str, adapter: Path) -> None:
    refused(drop(adapter, field), "is not supported" if field == "peft_type" else "does not say")


def test_no_pattern_can_keep_the_process_busy(adapter: Path) -> None:
    start = time.process_time()
    refused(edit(adapter, target_modules=r"([a-z0-9_.]+)+\.(q|v)_proj!"), "does not target")
    refused(edit(adapter, target_modules=r"(.*)*(.*)*(.*)*(q|v)_proj(.*)*x"), "does not target")
    assert time.process_time() - start < 20  # PEFT's own match takes longer than a life


def spoil(folder: Path, change: dict[str, Any]) -> Path:
    tensors = load_file(folder / TENSORS)
    for name, value in change.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, folder / TENSORS)
    return folder


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({f"{Q}.lora_A.weight": None}, "holds B, a lora needs A + B"),
        ({f"{Q}.lora_B.weight": None}, "holds A, a lora needs A + B"),
        ({f"{Q}.lora_B.weight": torch.zeros(3, 4)}, "out is 3, the base has"),
        ({f"{Q}.lora_A.weight": torch.zeros(4, 3)}, "in is 3, the base has"),
        ({f"{Q}.lora_A.weight": torch.zeros(4)}, "axes are rank in"),
        ({f"{Q}.lora_A.weight": torch.tensor(1.0)}, "axes are rank in"),
        ({f"{Q}.lora_magnitude_vector": torch.ones(4)}, "this form does not have: base_model."),
        ({f"{Q}.lora_embedding_A": torch.ones(4, 4)}, "they would be lost"),
        ({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 4)}, "would be lost"),
        ({f"{Q}.lora_A.default.weight": torch.ones(4, 4)}, "would be lost"),
        ({f"{Q}\n.lora_A.weight": torch.ones(4, 4)}, "would be lost"),
    ],
)
def test_refuses_tensors_that_make_no_lora(
    change: dict[str, Any], reason: str, adapter: Path
) -> None:
    refused(spoil(adapter, change), reason)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_peft_loads_weights_that_are_no_numbers_and_we_refuse(value: float, adapter: Path) -> None:
    name = f"{Q}.lora_B.weight"
    like = load_file(adapter / TENSORS)[name]
    spoil(adapter, {name: torch.full_like(like, value)})
    PeftModel.from_pretrained(tiny_model("llama"), adapter)
    refused(adapter, "holds NaN or infinite values")


def test_refuses_tensors_of_no_module_of_the_base(adapter: Path) -> None:
    tensors = load_file(adapter / TENSORS)
    moved = {name.replace("layers.1", "layers.7"): tensor for name, tensor in tensors.items()}
    save_file(moved, adapter / TENSORS)
    refused(adapter, "the base has no module 'model.layers.7.self_attn.q_proj' where a brick")


def test_peft_loads_an_adapter_of_a_deeper_base_and_we_refuse(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"])
    folder = saved(config, tmp_path / "adapter", llama(layers=3))
    PeftModel.from_pretrained(tiny_model("llama"), folder)
    refused(folder, "the base has no module 'model.layers.2.self_attn.q_proj'")


@pytest.mark.parametrize("targets", [["q_proj"], r".*\.(q|o)_proj"])
def test_refuses_an_adapter_of_a_shallower_base(targets: Any, tmp_path: Path) -> None:
    folder = saved(LoraConfig(r=2, target_modules=targets), tmp_path / "adapter")
    refused(folder, "also targets model.layers.2.self_attn.q_proj, where it has no", layers=3)


def test_a_brick_of_another_base_with_the_same_shapes_is_refused(adapter: Path) -> None:
    brick = read_peft(adapter, wrap_model(tiny_model("llama")).base, "x")
    other = wrap_model(llama()).base
    assert brick.spec.base.shapes == other.fingerprint.shapes
    with pytest.raises(MisfitError, match="the base's weights differ"):
        require_fit(brick, other)
    write_brick(brick, adapter.with_name("brick"))
    PeftModel.from_pretrained(llama(), adapter.with_name("brick"))


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"num_virtual_tokens": 3}, "its configuration says [3, "),
        ({"num_virtual_tokens": None}, "num_virtual_tokens: Input should be a valid integer"),
        ({"token_dim": None}, "token_dim: Input should be a valid integer"),
        ({"token_dim": 1}, ""),
        ({"num_transformer_submodules": 2}, "is made for 2 stacks of layers"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
        ({"tomorrow": True}, "tomorrow"),
    ],
)
def test_refuses_soft_adapters_with_other_sizes(
    kind: str, fields: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    config = {"prompt": PromptTuningConfig, "prefix": PrefixTuningConfig}[kind]
    folder = saved(config(num_virtual_tokens=2, task_type="CAUSAL_LM"), tmp_path / "adapter")
    refused(edit(folder, **fields), reason)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"num_attention_heads": None}, "does not divide into None num_attention_heads"),
        ({"num_attention_heads": 3}, "does not divide into 3 num_attention_heads"),
        ({"num_attention_heads": 1}, "kv_heads is 1, the base has"),
        ({"num_attention_heads": 0}, "num_attention_heads: Input should be greater than 0"),
        ({"num_layers": 3}, "was made for 3 layers; the base has 2 attentions"),
        ({"num_layers": None}, "was made for None layers; the base has 2 attentions"),
    ],
)
def test_refuses_a_prefix_with_other_heads_or_layers(
    fields: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    config = PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    folder = saved(config, tmp_path / "adapter")
    refused(edit(folder, **fields), reason)


def test_refuses_a_prefix_of_a_deeper_base(tmp_path: Path) -> None:
    config = PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    folder = saved(config, tmp_path / "adapter", llama(layers=4))
    refused(folder, "was made for 4 layers; the base has 2 attentions")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"feedforward_modules": None}, "feedforward_modules is None in the adapter's"),
        ({"feedforward_modules": [3]}, "feedforward_modules is [3]"),
        ({"feedforward_modules": []}, "scales its outputs, its tensor has shape [1, "),
        ({"feedforward_modules": r".*_proj"}, "scales its inputs, its tensor has shape ["),
        ({"target_modules": ["k_proj"]}, "does not target"),
        ({"target_modules": ["k_proj", "down_proj", "v_proj"]}, "also targets model.layers.0.self"),
        ({"init_lora_weights": False, "tomorrow": 1}, "tomorrow, which a plain IA3 brick would"),
    ],
)
def test_refuses_an_ia3_whose_configuration_says_otherwise(
    fields: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    refused(edit(saved(config, tmp_path / "adapter"), **fields), reason)


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "a\n"])
def test_refuses_a_name_that_is_none(name: str, adapter: Path) -> None:
    with pytest.raises(BrickFormatError, match="does not describe a brick: name: String should"):
        read_peft(adapter, wrap_model(tiny_model("llama")).base, name)


def imported(adapter: Path) -> Brick:
    return read_peft(adapter, wrap_model(tiny_model("llama")).base, "x")


def test_a_kept_configuration_must_stay_the_bricks_own(adapter: Path) -> None:
    brick = imported(adapter)
    site = brick.spec.sites[0]
    wider = {
        f"{site}/A": torch.ones(7, brick.tensors[f"{site}/A"].shape[1]),
        f"{site}/B": torch.ones(brick.tensors[f"{site}/B"].shape[0], 7),
    }
    scaled = brick.spec.model_copy(update={"options": {"alpha": 1.0}})
    for stale in (Brick(brick.spec, {**brick.tensors, **wider}), Brick(scaled, brick.tensors)):
        (problem,) = problems(stale)
        assert problem.startswith("the PEFT configuration that it keeps is not its own: ")
        assert problem.endswith("Set 'peft' to None.")
        mended = Brick(stale.spec.model_copy(update={"peft": None}), stale.tensors)
        assert problems(mended) == []


def test_a_part_of_an_adapter_does_not_fit_with_the_whole_configuration(adapter: Path) -> None:
    brick, base = imported(adapter), wrap_model(tiny_model("llama")).base
    kept = brick.spec.sites[:-1]
    tensors = {n: t for n, t in brick.tensors.items() if n.rpartition("/")[0] in kept}
    part = Brick(brick.spec.model_copy(update={"sites": kept}), tensors)
    assert misfits(part, base) == [
        f"its PEFT configuration also targets {brick.spec.sites[-1]}, where it has no tensors"
    ]


def test_a_form_that_peft_does_not_have_keeps_no_configuration() -> None:
    brick = random_brick("bias", BASE, torch.Generator().manual_seed(0), peft={"peft_type": "LORA"})
    assert problems(brick) == ["the spec keeps a PEFT configuration, but PEFT has no bias"]
