"""Branches: trained apart, averaged by the merging engine, mixed as experts with tuned routers."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from brickwork.combine.engine import write_merge
from brickwork.combine.mixture import write_mixture
from brickwork.combine.mixture_recipe import parse_mixture
from brickwork.combine.plan import ModelRef
from brickwork.combine.planner import plan_merge
from brickwork.combine.recipe import parse_recipe
from brickwork.errors import ConfigurationError, DataError, GrowthError, ModelError
from brickwork.grow.branches import branch_hash, train_branches
from brickwork.grow.mix_tune import expert_weights, routers_of, tune_mixture
from brickwork.measure.perplexity import instance_losses
from brickwork.model.export import RECORD
from brickwork.model.fit import FitRecipe, fit, training_batches
from brickwork.model.load import wrap_model
from brickwork.model.train import Encoded
from tests.tiny import tiny_model, tiny_tokenizer

RECIPE = FitRecipe(rate=1e-2, steps=3, tokens_per_batch=128, warm_up=2)
IDS = torch.tensor([[5, 40, 70, 99, 12, 30, 8]])


def texts(first: int, stride: int, count: int = 24, seed: int = 0) -> list[Encoded]:
    """Texts of 30 letters of their own, each letter so many places after the one before."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        start = draw.randrange(30)
        ids = [first + (start + stride * n) % 30 for n in range(10)]
        found.append(Encoded(ids, 2))
    return found


DOMAINS = {"low": texts(10, 1), "high": texts(60, 7)}


def fetch(ref: ModelRef) -> Path:
    return Path(ref.model)


def loaded_by_transformers(folder: Path) -> PreTrainedModel:
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    found: PreTrainedModel = model.eval()
    return found


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    found: Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen3_moe"])
def test_a_branch_is_what_training_alone_makes_of_the_model(family: str, tmp_path: Path) -> None:
    loaded = wrap_model(tiny_model(family), tiny_tokenizer(), "tiny")
    before = copy.deepcopy(loaded.model.state_dict())
    steps: list[tuple[str, int, int]] = []
    folders = train_branches(
        loaded, DOMAINS, tmp_path, RECIPE,
        report=lambda domain, step, total, _loss: steps.append((domain, step, total)),
    )  # fmt: skip
    assert steps == [(domain, n, 3) for domain in DOMAINS for n in (1, 2, 3)]
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(p.grad is None and p.requires_grad for p in loaded.model.parameters())
    alone = tiny_model(family)
    fit(alone, alone.parameters(), training_batches(DOMAINS["high"], RECIPE), RECIPE)
    assert torch.equal(logits(loaded_by_transformers(folders["high"])), logits(alone))
    assert (folders["low"] / "tokenizer.json").is_file()
    assert str(tmp_path) not in (folders["low"] / RECORD).read_text()


def test_branches_keep_the_number_format_of_the_model(tmp_path: Path) -> None:
    loaded = wrap_model(tiny_model("llama").bfloat16(), None, "tiny")
    folders = train_branches(loaded, {"low": DOMAINS["low"]}, tmp_path, RECIPE)
    assert loaded_by_transformers(folders["low"]).dtype == torch.bfloat16
    assert loaded.dtype == torch.bfloat16


def test_a_call_that_was_stopped_goes_on_with_the_branches_left(tmp_path: Path) -> None:
    loaded = wrap_model(tiny_model("llama"), None, "tiny")

    def stop(domain: str, step: int, _steps: int, _loss: float) -> None:
        if (domain, step) == ("high", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_branches(loaded, DOMAINS, tmp_path, RECIPE, report=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["low"]
    trained = []
    folders = train_branches(
        loaded, DOMAINS, tmp_path, RECIPE, report=lambda domain, *_: trained.append(domain)
    )
    assert set(trained) == {"high"}
    whole = train_branches(loaded, DOMAINS, tmp_path / "whole", RECIPE)
    for domain, folder in folders.items():
        one, other = (path / "model.safetensors" for path in (folder, whole[domain]))
        assert one.read_bytes() == other.read_bytes()
    assert branch_hash(folders["low"]) == branch_hash(whole["low"]) != branch_hash(whole["high"])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda loaded, recipe: (loaded, DOMAINS["low"][1:], recipe), "data, texts differ"),
        (
            lambda loaded, recipe: (loaded, DOMAINS["low"], FitRecipe(rate=1e-3, steps=3)),
            "recipe differ",
        ),
        (
            lambda _loaded, recipe: (wrap_model(tiny_model("llama", 1)), DOMAINS["low"], recipe),
            "base differ",
        ),
    ],
)
def test_refuses_a_place_with_another_branch(
    change: Callable[..., tuple[object, ...]], word: str, tmp_path: Path
) -> None:
    loaded = wrap_model(tiny_model("llama"))
    train_branches(loaded, {"low": DOMAINS["low"]}, tmp_path, RECIPE)
    other, data, recipe = change(loaded, RECIPE)
    with pytest.raises(
        GrowthError, match=rf"the branch 'low' was to be written .*{word}.*name another"
    ):
        train_branches(other, {"low": data}, tmp_path, recipe)  # type: ignore[arg-type]


def test_refuses_domains_that_cannot_be_branches(tmp_path: Path) -> None:
    loaded = wrap_model(tiny_model("llama"))
    with pytest.raises(
        ConfigurationError, match=r"among them '\.\./up', which cannot be a folder's"
    ):
        train_branches(loaded, {"../up": DOMAINS["low"]}, tmp_path, RECIPE)
    with pytest.raises(ConfigurationError, match="branches of 0 domains"):
        train_branches(loaded, {}, tmp_path, RECIPE)
    with pytest.raises(DataError, match="the domain 'b', which has no text"):
        train_branches(loaded, {"a": DOMAINS["low"], "b": []}, tmp_path, RECIPE)
    (tmp_path / "low").mkdir()
    with pytest.raises(GrowthError, match="holds something else"):
        train_branches(loaded, {"low": DOMAINS["low"]}, tmp_path, RECIPE)
    assert not any((tmp_path / "low").iterdir())
    (tmp_path / "low" / RECORD).write_text("{}")
    with pytest.raises(GrowthError, match=r"was to be a branch, but its brickwork\.json tells of"):
        branch_hash(tmp_path / "low")


def saved(family: str, seed: int, folder: Path) -> Path:
    tiny_model(family, seed).save_pretrained(folder)
    return folder


def averaged(folders: list[Path], out: Path) -> PreTrainedModel:
    models = [{"model": str(folder), "parameters": {"weight": 1.0}} for folder in folders]
    recipe = parse_recipe({"merge_method": "linear", "models": models})
    write_merge(plan_merge(recipe, fetch), out)
    return loaded_by_transformers(out)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_equal_branches_averaged_are_the_dense_model(family: str, tmp_path: Path) -> None:
    folders = [saved(family, 0, tmp_path / name) for name in "abc"]
    found = averaged(folders, tmp_path / "average").state_dict()
    for name, tensor in tiny_model(family, 0).state_dict().items():
        # A sum of three equal numbers is rounded, and divided by 3, in float32.
        torch.testing.assert_close(found[name], tensor, rtol=3e-7, atol=0)


def test_branches_averaged_are_the_mean_of_their_weights(tmp_path: Path) -> None:
    folders = [saved("llama", seed, tmp_path / str(seed)) for seed in range(3)]
    found = averaged(folders, tmp_path / "average").state_dict()
    states = [tiny_model("llama", seed).double().state_dict() for seed in range(3)]
    for name, tensor in found.items():
        mean = torch.stack([state[name] for state in states]).mean(0)
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-5, atol=1e-7)  # float32


def mixed(folders: list[Path], base: Path, out: Path, per_token: int = 2) -> PreTrainedModel:
    recipe = parse_mixture({
        "base_model": str(base),
        "experts": [{"source_model": str(folder)} for folder in folders],
        "gate_mode": "uniform_random", "experts_per_token": per_token,
    })  # fmt: skip
    write_mixture(recipe, out, fetch=fetch, device="cpu")
    return loaded_by_transformers(out)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_equal_branches_mixed_are_the_dense_model_whatever_the_routers_learn(
    family: str, tmp_path: Path
) -> None:
    folders = [saved(family, 0, tmp_path / name) for name in "abc"]
    averaged(folders, tmp_path / "average")
    model, dense = mixed(folders, tmp_path / "average", tmp_path / "out"), tiny_model(family)
    # Weights of two equal experts, which sum to 1 within rounding, over some layers in float32.
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-5, atol=1e-5)
    before = [router.weight.clone() for router in routers_of(model)]  # type: ignore[union-attr, operator]
    tune_mixture(model, [*DOMAINS["low"], *DOMAINS["high"]], RECIPE)
    after = [router.weight for router in routers_of(model)]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))  # type: ignore[arg-type]
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    """Branches of two domains with nothing in common, mixed; its routers are still random."""
    place = tmp_path_factory.mktemp("mixture")
    recipe = FitRecipe(rate=5e-3, steps=60, tokens_per_batch=256, warm_up=5)
    folders = train_branches(wrap_model(tiny_model("llama")), DOMAINS, place, recipe)
    branches = list(folders.values())
    averaged(branches, place / "average")
    return mixed(branches, place / "average", place / "mix")


@contextmanager
def turned(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the routers say the opposite."""
    with torch.no_grad():
        for sign in (-1, 1):
            for router in routers_of(model):
                router.weight.mul_(-1)  # type: ignore[union-attr, operator]
            if sign < 0:
                yield


def test_tuned_routers_send_a_domain_to_its_own_branch(mixture: PreTrainedModel) -> None:
    model = copy.deepcopy(mixture)
    unseen = {"low": texts(10, 1, seed=1), "high": texts(60, 7, seed=1)}
    every = [*DOMAINS["low"], *DOMAINS["high"]]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    random_loss = instance_losses(model, [*unseen["low"], *unseen["high"]]).response.mean()
    losses = tune_mixture(
        model, every, FitRecipe(rate=2e-2, steps=60, tokens_per_batch=512, warm_up=5)
    )
    assert len(losses) == 60
    own = [expert_weights(model, unseen[name]).mean(0)[n] for n, name in enumerate(DOMAINS)]
    assert min(own) > 0.6  # of two experts; without any knowledge of the domain 0.5 on average
    tuned_loss = instance_losses(model, [*unseen["low"], *unseen["high"]]).response.mean()
    assert tuned_loss < random_loss
    with turned(model):
        worse = instance_losses(model, [*unseen["low"], *unseen["high"]]).response.mean()
    assert worse > tuned_loss
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != (".mlp.gate." in name), name


def test_everything_is_trained_if_wished(mixture: PreTrainedModel) -> None:
    model = copy.deepcopy(mixture)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    tune_mixture(model, DOMAINS["low"], RECIPE, everything=True)
    same = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert same == []
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_the_balance_loss_evens_out_the_use(tmp_path: Path) -> None:
    # Equal branches: the loss on texts does not depend on the routers, so balance alone moves them.
    folders = [saved("llama", 0, tmp_path / name) for name in "abcd"]
    model = mixed(folders, folders[0], tmp_path / "out")
    recipe = FitRecipe(rate=2e-2, steps=30, tokens_per_batch=256, warm_up=2)
    used = partial(expert_weights, model, DOMAINS["low"])
    before = used().std(1)
    tune_mixture(model, DOMAINS["low"], recipe, balance=1.0)
    assert bool((used().std(1) < before / 2).all())


def test_expert_weights_equal_a_loop_over_texts(mixture: PreTrainedModel) -> None:
    model, lines = mixture, [Encoded([12, 70, 13], 1), Encoded([20] * 9, 3), Encoded([65, 66], 1)]
    total = torch.zeros(2, 2, dtype=torch.float64)
    for line in lines:
        with torch.no_grad():
            raw = model(torch.tensor([line.ids]), output_router_logits=True).router_logits
        total += torch.stack([layer.double().softmax(-1).sum(0) for layer in raw])
    expected = total / 14
    # Both of two experts are chosen, so weights are the softmax; summed in float64 from float32.
    torch.testing.assert_close(expert_weights(model, lines), expected, rtol=1e-5, atol=0)


def test_refuses_what_cannot_be_tuned(mixture: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(GrowthError, match="none of its 2 layers has experts; mix branches first"):
        tune_mixture(tiny_model("llama"), DOMAINS["low"], RECIPE)
    folders = [saved("llama", seed, tmp_path / str(seed)) for seed in (0, 1)]
    single = mixed(folders, folders[0], tmp_path / "out", per_token=1)
    with pytest.raises(GrowthError, match="which then weighs 1 whatever the router says"):
        tune_mixture(single, DOMAINS["low"], RECIPE)
    with pytest.raises(ConfigurationError, match=r"in torch.bfloat16; load it in float32"):
        tune_mixture(copy.deepcopy(mixture).bfloat16(), DOMAINS["low"], RECIPE)
    with pytest.raises(DataError, match="0 sequences"):
        tune_mixture(mixture, [], RECIPE)
    with pytest.raises(DataError, match="on 0 texts"):
        expert_weights(mixture, [])


def test_a_branch_that_diverges_is_not_written(tmp_path: Path) -> None:
    loaded = wrap_model(tiny_model("llama"))
    recipe = FitRecipe(rate=1e30, steps=3, warm_up=1)
    with pytest.raises(ModelError, match="lower rate"):
        train_branches(loaded, {"low": DOMAINS["low"]}, tmp_path, recipe)
    assert not (tmp_path / "low").exists()
