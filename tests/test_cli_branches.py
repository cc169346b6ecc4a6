"""``brickwork grow branches``: what it writes, what it says, what it refuses."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from brickwork.cli.branches import branches
from brickwork.cli.branches_inputs import read_domains
from brickwork.errors import BrickworkError
from brickwork.measure.instances import Instance, encode_instances
from brickwork.measure.passages import encode_passages
from brickwork.measure.perplexity import response_losses
from brickwork.model.cost import token_flops
from brickwork.model.load import load_model
from brickwork.model.shards import Shards
from tests.tiny import tiny_model, tiny_tokenizer

LETTERS = {"vowels": "aeiou", "digits": "13579"}
QUICK = ("--steps", 20, "--rate", 5e-3, "--batch", 256)


def lines_of(letters: str, seed: int) -> list[dict[str, str]]:
    """Twenty instances of words of these letters, with different prompts."""
    draw = random.Random(seed)
    words = ["".join(word) for word in product(letters, repeat=3)]
    prompts = draw.sample(words, 20)
    return [{"prompt": one, "response": " ".join(draw.choices(words, k=3))} for one in prompts]


def write_world(place: Path, family: str) -> Path:
    """A tiny model, and for two domains a file of instances and a labelled one of both."""
    tiny_model(family).save_pretrained(place / "base")
    tiny_tokenizer().save_pretrained(place / "base")
    lines = {name: lines_of(letters, 0) for name, letters in LETTERS.items()}
    for name, own in lines.items():
        (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, own)))
    labelled = [{"functionality": name} | one for name, own in lines.items() for one in own]
    (place / "all.jsonl").write_text("\n".join(map(json.dumps, labelled)))
    return place


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("branches"), "llama")


Ask = Callable[..., Result]


@pytest.fixture
def ask(world: Path, tmp_path: Path) -> Ask:
    """The command on both domains."""

    def invoke(*words: object, out: Path = tmp_path / "out", domains: bool = True) -> Result:
        files = [f"--domain={name}={world / name}.jsonl" for name in LETTERS] if domains else []
        command = [str(world / "base"), *files, *words, "-o", str(out), *QUICK]
        return CliRunner().invoke(branches, [str(word) for word in command])

    return invoke


def said(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@dataclass(frozen=True)
class Forest:
    """A folder with branches that were joined in every way, and what the command said of each."""

    out: Path
    average: dict[str, Any]
    ensemble: dict[str, Any]
    mix: dict[str, Any]
    retrained: bool

    @property
    def every(self) -> tuple[dict[str, Any], ...]:
        return self.average, self.ensemble, self.mix


@pytest.fixture(scope="module")
def forest(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Forest:
    out = tmp_path_factory.mktemp("forest") / "out"
    files = [f"--domain={name}={world / name}.jsonl" for name in LETTERS]

    def invoke(*words: object) -> dict[str, Any]:
        command = [world / "base", *files, *words, "-o", out, *QUICK, "--json"]
        return said(CliRunner().invoke(branches, [str(word) for word in command]))

    average = invoke("--by", "average")
    weights = {f: f.stat().st_mtime_ns for f in out.glob("branches/*/model.safetensors")}
    ensemble = invoke("--by", "ensemble")
    mix = invoke("--by", "mix", "--tune-steps", 20, "--tune-rate", 2e-2)
    later = {f: f.stat().st_mtime_ns for f in weights}
    return Forest(out, average, ensemble, mix, len(weights) != 2 or later != weights)


def test_branches_are_trained_once_and_joined_in_every_way(forest: Forest, world: Path) -> None:
    assert not forest.retrained
    for document in forest.every:
        assert document["base"] == forest.average["base"]
        for name, own in document["branches"].items():
            assert own == pytest.approx(forest.average["branches"][name], rel=1e-5)  # float32
            assert own[name] < document["base"][name]
            assert own[name] == min(b[name] for b in document["branches"].values())
        kept = json.loads((forest.out / f"{document['by']}.json").read_text())
        assert kept == {key: value for key, value in document.items() if key != "out"}
        assert str(world) not in json.dumps(kept)


def test_an_ensemble_knows_whose_domain_a_text_is_of(forest: Forest) -> None:
    for name, own in forest.ensemble["joined"]["ensemble"].items():
        others = [branch[name] for branch in forest.ensemble["branches"].values()]
        assert own < sum(others) / 2
        assert forest.ensemble["posterior"][name][name] > 0.9


def test_a_mixture_starts_from_the_average_and_its_routers_are_tuned(forest: Forest) -> None:
    joined = forest.mix["joined"]
    assert joined["average"] == forest.average["joined"]["average"]
    assert joined["mix"] != joined["mix before tuning"]
    for name in LETTERS:
        assert sum(forest.mix["routing"][name].values()) == pytest.approx(1, abs=1e-6)  # float32
    mix, average = (Shards(forest.out / kind) for kind in ("mix", "average"))
    shared = [name for name in average.tensors if ".mlp." not in name]
    assert len(shared) > 10
    for name in shared:
        assert torch.equal(mix.tensor(name), average.tensor(name))


def test_what_it_says_of_a_result_is_true_of_the_checkpoint(forest: Forest, world: Path) -> None:
    for document in (forest.average, forest.mix):
        loaded = load_model(str(forest.out / document["by"]))
        joined = document["cost"]["joined"]
        assert joined["parameters"] == sum(p.numel() for p in loaded.model.parameters())
        assert joined["flops_per_token"] == token_flops(loaded.model)
        assert loaded.tokenizer is not None
        record = json.loads((forest.out / document["by"] / "brickwork.json").read_text())
        assert set(record["branches"]) == set(LETTERS)
        assert str(world) not in json.dumps(record)
    files = [*forest.out.glob("**/model.safetensors")]
    assert len(files) == 4
    written = sum(file.stat().st_size for file in files)
    # Beside the weights, files have a header of names.
    assert written * 0.9 < forest.mix["cost"]["bytes_to_write"] < written


def test_a_dry_run_says_what_would_be_done(ask: Ask, tmp_path: Path, forest: Forest) -> None:
    words = ("--by", "mix", "--tune-steps", 20, "--tune-rate", 2e-2, "--dry-run")
    planned = said(ask(*words, "--json"))
    assert planned["cost"] == forest.mix["cost"]
    assert planned["domains"] == forest.mix["domains"]
    one = planned["cost"]["base"]
    together = said(ask("--by", "ensemble", "--dry-run", "--json"))["cost"]
    assert together["joined"] == {key: 2 * value for key, value in one.items()}
    shown = ask(*words)
    assert "FLOPs of training at most" in shown.output
    assert "16 texts" in shown.output
    assert not (tmp_path / "out").exists()


def test_only_likely_domains_and_a_prior_of_texts_take_part(
    ask: Ask, world: Path, tmp_path: Path, forest: Forest
) -> None:
    shutil.copytree(forest.out / "branches", tmp_path / "out" / "branches")
    prior = ("--prior", world / "digits.jsonl")
    document = said(ask("--by", "ensemble", "--top", 1, *prior, "--json"))
    assert document["prior"]["digits"] > 0.8  # 1 - 0.9^20 = 0.88 if every text is sure
    assert document["joined"] != forest.ensemble["joined"]
    shown = ask("--by", "ensemble")
    assert "share of each domain of a text" in " ".join(shown.output.split())
    assert "branch digits" in shown.output


def test_domains_may_be_plain_text_or_functionalities(
    ask: Ask, world: Path, tmp_path: Path
) -> None:
    passages = [one["response"] for one in lines_of("xyz", 3)[:12]]
    (tmp_path / "plain.txt").write_text("\n\n".join(passages))
    words = ("--domain", "digits", "--data", world / "all.jsonl")
    words += ("--domain", f"plain={tmp_path / 'plain.txt'}", "--evaluation", 50)
    words += ("--prompt-weight", 0.5)
    document = said(ask(*words, "--json", domains=False))
    domains = document["domains"]
    assert (domains["digits"]["source"], domains["digits"]["measured"]) == ("", 4)
    assert (domains["plain"]["source"], domains["plain"]["measured"]) == ("plain.txt", 2)
    assert domains["plain"]["train"] == 10
    loaded = load_model(str(world / "base"))
    every = encode_passages(loaded, passages, 64)
    assert domains["plain"]["train_tokens"] < sum(len(text.ids) for text in every)
    assert document["branches"]["plain"]["plain"] < document["base"]["plain"]
    record = json.loads((tmp_path / "out" / "branches" / "plain" / "brickwork.json").read_text())
    assert record["recipe"]["prompt_weight"] == 0.5


def test_what_is_measured_on_is_trained_on_in_no_domain(world: Path, tmp_path: Path) -> None:
    both = "\n".join((world / f"{name}.jsonl").read_text() for name in LETTERS)
    (tmp_path / "both.jsonl").write_text(both)
    asked = [f"digits={world / 'digits.jsonl'}", f"both={tmp_path / 'both.jsonl'}"]
    options = {"data": None, "longest": 64, "evaluation": 40, "seed": 0}
    domains = read_domains(load_model(str(world / "base")), asked, "base", options)
    train, measured = (
        {name: {tuple(text.ids) for text in getattr(domain, kind)} for name, domain in
         domains.items()}
        for kind in ("train", "measured")
    )  # fmt: skip
    assert [len(own) for own in measured.values()] == [4, 8]
    # Else the twins of what digits are measured on would be held out there anyway.
    assert len(train["digits"]) < 16
    for own in train.values():
        assert not own & (measured["digits"] | measured["both"])


def test_losses_are_those_of_the_texts_held_out(forest: Forest, world: Path) -> None:
    loaded = load_model(str(world / "base"))
    lines = [json.loads(one) for one in (world / "digits.jsonl").read_text().splitlines()]
    prompts = sorted({one["prompt"] for one in lines})
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0))
    held = {prompts[i] for i in order[: len(prompts) // 5].tolist()}
    kept = [Instance("digits", **one) for one in lines if one["prompt"] in held]
    texts = [text for text in encode_instances(loaded, kept, 64).sequences if text is not None]
    expected = response_losses(loaded.model, texts, ["digits"] * len(texts))["digits"]
    assert forest.average["base"]["digits"] == pytest.approx(expected, rel=1e-6)  # float32 batches


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--domain", "vowels=vowels.jsonl"), "3 domains with 2 names"),
        (("--domain", "law"), "'law' has no file, and there is no labelled data"),
        (("--by", "average", "--top", 1), "--top has no effect on --by average"),
        (("--by", "ensemble", "--balance", 1), "--balance has no effect on --by ensemble"),
        (("--by", "ensemble", "--top", 3), "--top 3 of 2 domains"),
        (("--by", "mix", "--per-token", 3), "--per-token 3 of 2 domains"),
    ],
)
def test_refuses_with_a_reason_and_writes_nothing(
    ask: Ask, tmp_path: Path, words: tuple[object, ...], message: str
) -> None:
    result = ask(*words)
    with pytest.raises(BrickworkError, match=message):
        raise result.exception or AssertionError(result.output)
    assert not (tmp_path / "out").exists()


def test_refuses_too_few_texts_and_unknown_functionalities(
    ask: Ask, world: Path, tmp_path: Path
) -> None:
    (tmp_path / "one.jsonl").write_text('{"prompt": "a b", "response": "c d"}\n' * 3)
    for words, message in (
        ([f"--domain=one={tmp_path}/one.jsonl"], "'one' has 3 texts, 1 of them different"),
        (["--domain", "vowel", "--data", world / "all.jsonl"], "did you mean 'vowels'"),
    ):
        with pytest.raises(BrickworkError, match=message):
            raise ask(*words).exception or AssertionError
    with pytest.raises(BrickworkError, match="branches of 1 domains with 1 names"):
        raise ask("--domain", "vowels", domains=False).exception or AssertionError


def test_results_that_are_there_are_refused_before_any_training(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "out" / "mix").mkdir(parents=True)
    with pytest.raises(BrickworkError, match=r"a model was to be written .* is there already"):
        raise ask("--by", "mix").exception or AssertionError
    assert not (tmp_path / "out" / "branches").exists()
    (tmp_path / "out" / "average").mkdir()
    with pytest.raises(BrickworkError, match=r"average of vowels, digits was .* something else"):
        raise ask().exception or AssertionError


def test_families_without_a_mixture_are_refused_before_any_training(tmp_path: Path) -> None:
    for family, message in (("gpt2", "a mixture of gpt2 models"), ("qwen2", "qwen2_moe")):
        place = tmp_path / family
        place.mkdir()
        write_world(place, family)
        files = [f"--domain={name}={place / name}.jsonl" for name in LETTERS]
        command = [str(place / "base"), *files, "--by", "mix", "-o", str(place / "out")]
        result = CliRunner().invoke(branches, command)
        with pytest.raises(BrickworkError, match=message):
            raise result.exception or AssertionError(result.output)
        assert not (place / "out").exists()
