"""One vocabulary for several models: whose row stands where, and tokenizers that load."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from brickwork.combine.engine import Extras, write_merge
from brickwork.combine.operands import Source, TensorSource
from brickwork.combine.plan import MergePlan, ModelRef, Operand, TensorPlan
from brickwork.combine.planner import plan_merge
from brickwork.combine.recipe import TokenizerChoice, parse_recipe
from brickwork.combine.vocabulary import (
    Vocabulary,
    plan_vocabulary,
    with_vocabulary,
)
from brickwork.errors import MergeError, ModelError
from tests.tiny import tiny_model, tiny_tokenizer

TOKENS = len(tiny_tokenizer())
COLUMNS = 3
TEXT = "the man and a banana"


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """A base without padding rows, and two models with a token more: one special, one not."""
    special = tiny_tokenizer()
    special.add_tokens([AddedToken("<|im_start|>", special=True, normalized=False)])
    plain = tiny_tokenizer()
    plain.add_tokens([AddedToken("banana", special=False)])
    return {
        "base": saved(tmp_path / "base", tiny_tokenizer(), TOKENS),
        "chat": saved(tmp_path / "chat", special, TOKENS + 1),
        "fruit": saved(tmp_path / "fruit", plain, TOKENS + 1),
    }


def saved(folder: Path, tokenizer: PreTrainedTokenizerFast, rows: int, **config: Any) -> Path:
    LlamaConfig(vocab_size=rows, **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def refs(folders: dict[str, Path], *names: str) -> dict[ModelRef, Path]:
    return {ModelRef(str(folders[name])): folders[name] for name in names or folders}


def planned(
    folders: dict[str, Path], *names: str, base: bool = True, **choice: Any
) -> tuple[Vocabulary, list[ModelRef]]:
    models = refs(folders, *names)
    first = next(iter(models)) if base else None
    return plan_vocabulary(TokenizerChoice(**choice), models, base=first), list(models)


def embedding(model: int, rows: int) -> Tensor:
    """Rows that say whose they are and which."""
    return (torch.arange(rows) + 1000 * model)[:, None].expand(rows, COLUMNS).float()


def rearranged(vocabulary: Vocabulary, models: list[ModelRef], tensors: list[Tensor]) -> list[Any]:
    operands = tuple(Operand(ref, "embed", str(ref)) for ref in models)
    sources: dict[Operand, Source] = {
        operand: TensorSource(tensor) for operand, tensor in zip(operands, tensors, strict=True)
    }
    plan = TensorPlan("embed", (0,), torch.float32, "linear", operands, vocabulary=True)
    found = vocabulary.rearranged(plan, sources)
    return [found[operand] for operand in operands]


def read(source: Source) -> Tensor:
    return torch.cat([source.read(0, 5), source.read(5, source.shape[0])])


def loaded(vocabulary: Vocabulary, folder: Path) -> Any:
    folder.mkdir()
    for name, raw in vocabulary.files.items():
        (folder / name).write_bytes(raw)
    return AutoTokenizer.from_pretrained(folder)


def test_a_union_keeps_the_base_and_appends_tokens_in_the_order_of_the_recipe(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    vocabulary, models = planned(folders, source="union")
    out = loaded(vocabulary, tmp_path / "out")
    assert vocabulary.size == vocabulary.config["vocab_size"] == len(out) == TOKENS + 2
    new = ["<|im_start|>", "banana"]
    assert out.convert_tokens_to_ids(new) == [TOKENS, TOKENS + 1]
    assert tiny_tokenizer().get_vocab().items() <= out.get_vocab().items()
    expected = tiny_tokenizer()
    expected.add_tokens([AddedToken(new[0], special=True, normalized=False), AddedToken(new[1])])
    assert out(f"<|im_start|>{TEXT}").input_ids == expected(f"<|im_start|>{TEXT}").input_ids
    assert out.added_tokens_decoder == expected.added_tokens_decoder
    assert out.decode([TOKENS, 5], skip_special_tokens=True) == out.decode([5])
    sizes = [TOKENS, TOKENS + 1, TOKENS + 1]
    tensors = [embedding(n, size) for n, size in enumerate(sizes)]
    for n, source in enumerate(rearranged(vocabulary, models, tensors)):
        rows = read(source)
        assert torch.equal(rows[:TOKENS], tensors[n][:TOKENS])
        assert torch.equal(rows[TOKENS:], torch.stack([tensors[1][-1], tensors[2][-1]]))


@pytest.mark.parametrize("tied", [False, True])
def test_a_merge_over_a_union_loads_and_knows_the_new_token(tmp_path: Path, tied: bool) -> None:
    words = tiny_tokenizer()
    words.add_tokens([AddedToken("<|im_start|>", special=True)])
    embeddings = []
    for name, tokenizer in (("base", tiny_tokenizer()), ("chat", words)):
        model = tiny_model("qwen2" if tied else "llama", seed=len(embeddings))
        model.resize_token_embeddings(len(tokenizer))
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        embeddings.append(model.get_output_embeddings().weight.detach())
    document = {
        "merge_method": "linear",
        "base_model": str(tmp_path / "base"),
        "models": [
            {"model": str(tmp_path / name), "parameters": {"weight": weight}}
            for name, weight in (("base", 0.25), ("chat", 0.75))
        ],
        "tokenizer_source": "union",
    }
    recipe = parse_recipe(document)
    plan = plan_merge(recipe, lambda ref: Path(ref.model))
    assert recipe.vocabulary is not None
    vocabulary = plan_vocabulary(recipe.vocabulary, plan.folders, base=recipe.base_model)
    extras = Extras(vocabulary.rearranged, vocabulary.files, record=vocabulary.record)
    write_merge(with_vocabulary(plan, vocabulary), tmp_path / "out", extras=extras)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    model, report = loaded
    assert not any(report.values()), report
    found = model.get_output_embeddings().weight.detach()
    base, chat = embeddings
    assert torch.equal(found[TOKENS], chat[TOKENS])
    # The same products and one sum of two float32 numbers, in a fused order or not.
    expected = 0.25 * base.double() + 0.75 * chat[:TOKENS].double()
    torch.testing.assert_close(found[:TOKENS].double(), expected, atol=1e-6, rtol=0)
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("<|im_start|>the").input_ids
    assert ids[0] == TOKENS
    assert model(torch.tensor([ids])).logits.shape[-1] == TOKENS + 1


def test_the_base_s_tokenizer_cuts_what_others_have_besides(folders: dict[str, Path]) -> None:
    vocabulary, models = planned(folders, source="base")
    assert vocabulary.size == TOKENS
    assert vocabulary.files["tokenizer.json"] == (folders["base"] / "tokenizer.json").read_bytes()
    tensors = [embedding(n, TOKENS + (n > 0)) for n in range(3)]
    found = rearranged(vocabulary, models, tensors)
    assert isinstance(found[0], TensorSource)  # nothing stands between the base and its file
    for source, tensor in zip(found, tensors, strict=True):
        assert torch.equal(read(source), tensor[:TOKENS])


def test_another_model_s_tokenizer_brings_its_special_numbers_along(tmp_path: Path) -> None:
    other = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, eos_token="the"
    )
    folders = {
        "base": saved(tmp_path / "base", tiny_tokenizer(), TOKENS, eos_token_id=1),
        "other": saved(tmp_path / "other", other, TOKENS, eos_token_id=98),
    }
    (folders["base"] / "generation_config.json").write_text('{"eos_token_id": 1, "top_k": 4}')
    vocabulary, models = planned(folders, source=str(folders["other"]))
    assert vocabulary.config["eos_token_id"] == 98
    generation = json.loads(vocabulary.files["generation_config.json"])
    assert (generation["eos_token_id"], generation["top_k"]) == (98, 4)
    config = {"vocab_size": TOKENS, "eos_token_id": 1}
    plan = MergePlan([], {}, config, models[0])
    assert with_vocabulary(plan, vocabulary).config == {"vocab_size": TOKENS, "eos_token_id": 98}


def test_a_model_outside_the_merge_may_lend_its_tokenizer(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True), AddedToken("apple")])
    outside = saved(tmp_path / "outside", tokenizer, TOKENS + 9, eos_token_id=7)
    models = refs(folders, "base", "chat")
    found = plan_vocabulary(
        TokenizerChoice(source="org/outside"), models, fetch={ModelRef("org/outside"): outside}.get
    )
    assert found.size == TOKENS + 2
    assert list(found.rows) == list(models)
    assert [rows[-2:].tolist() for rows in found.rows.values()] == [[-1, -1], [TOKENS, -1]]
    assert found.config["eos_token_id"] == 7
    assert found.notes == ["1 tokens ('apple', ...) are in no model; their rows are zero"]
    text = TEXT + "<|im_start|>apple"
    assert loaded(found, tmp_path / "out")(text).input_ids == tokenizer(text).input_ids
    with pytest.raises(MergeError, match="name org/outside, which is none"):
        plan_vocabulary(TokenizerChoice(source="org/outside"), models)


def test_other_rows_and_other_fillings_are_another_record(folders: dict[str, Path]) -> None:
    choices = [
        planned(folders),
        planned(folders, base=False),
        planned(folders, source="base"),
        planned(folders, tokens={"banana": {"source": {"kind": "zero"}}}),
        planned(folders, tokens={"banana": {"source": {"kind": "zero"}, "force": True}}),
    ]
    records = [json.dumps(vocabulary.record) for vocabulary, _ in choices]
    assert len(set(records)) == len(choices)
    assert records[0] == json.dumps(planned(folders)[0].record)


def test_a_forced_token_is_the_named_model_s_in_every_model(folders: dict[str, Path]) -> None:
    tokens = {
        "the": {"source": str(folders["chat"]), "force": True},
        "an": {"source": {"kind": "zero"}, "force": True},
        "Ġa": {
            "source": {"kind": "model_token", "model": str(folders["chat"]), "token_id": TOKENS},
            "force": True,
        },
        "b": {
            "source": {"kind": "model_token", "model": str(folders["base"]), "token": "<eos>"},
            "force": True,
        },
        "c": {"source": str(folders["chat"])},  # every model has it, and it is not forced
    }
    vocabulary, models = planned(folders, "base", "chat", source="base", tokens=tokens)
    ids = tiny_tokenizer().get_vocab()
    tensors = [embedding(0, TOKENS), embedding(1, TOKENS + 1)]
    for tensor, source in zip(tensors, rearranged(vocabulary, models, tensors), strict=True):
        expected = tensor[:TOKENS].clone()
        expected[ids["the"]] = tensors[1][ids["the"]]
        expected[ids["an"]] = 0
        expected[ids["Ġa"]] = tensors[1][TOKENS]
        expected[ids["b"]] = tensors[0][1]
        assert torch.equal(read(source), expected)


def test_tokens_of_some_models_are_the_base_s_or_else_their_mean(folders: dict[str, Path]) -> None:
    names = ("fruit", "base", "chat")
    tensors = [embedding(0, TOKENS + 1), embedding(1, TOKENS), embedding(2, TOKENS + 1)]
    tokens = {"zz<new>": {"source": None}, "th": {"force": True}}
    vocabulary, models = planned(folders, *names, base=False, source="union", tokens=tokens)
    _, base, _ = rearranged(vocabulary, models, tensors)
    banana, start, new = read(base)[TOKENS:]
    assert torch.equal(banana, tensors[0][-1])
    assert torch.equal(start, tensors[2][-1])
    assert not new.any()
    number = tiny_tokenizer().get_vocab()["th"]
    mean = torch.stack([tensor[number] for tensor in tensors]).mean(0)
    assert torch.equal(read(base)[number], mean)
    based, _ = planned(folders, *names, source="union", tokens=tokens)
    assert torch.equal(read(rearranged(based, models, tensors)[1])[number], tensors[0][number])


def test_places_after_the_last_token_hold_the_mean_row(folders: dict[str, Path]) -> None:
    vocabulary, models = planned(folders, "base", "chat", source="union", pad_to_multiple_of=64)
    assert vocabulary.size == 128
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(TOKENS + n, COLUMNS, generator=generator) for n in (0, 1)]
    source = rearranged(vocabulary, models, tensors)[1]
    mean = tensors[1].double().mean(0).float()
    assert torch.equal(read(source)[TOKENS + 1 :], mean.expand(128 - TOKENS - 1, -1))
    assert torch.equal(source.read(TOKENS, TOKENS + 3), read(source)[TOKENS : TOKENS + 3])


def test_a_bias_over_the_vocabulary_is_rearranged_as_one_row(folders: dict[str, Path]) -> None:
    vocabulary, models = planned(folders, "base", "chat", source="union")
    tensors = [embedding(0, TOKENS)[:, 0].clone(), embedding(1, TOKENS + 1)[:, 0].clone()]
    base, chat = rearranged(vocabulary, models, tensors)
    assert base.shape == (TOKENS + 1,)
    assert torch.equal(base.read(0, 1)[0], torch.cat([tensors[0], tensors[1][-1:]]))
    assert torch.equal(chat.read(0, 1)[0], tensors[1])


def test_equal_tokenizers_keep_the_padding_rows_of_their_models(tmp_path: Path) -> None:
    folders = {
        name: saved(tmp_path / name, tiny_tokenizer(), rows)
        for name, rows in (("base", 128), ("other", 112))
    }
    for source in ("union", "base"):
        vocabulary, models = planned(folders, source=source)
        assert vocabulary.size == 128
        tensors = [embedding(0, 128), embedding(1, 112)]
        base, other = rearranged(vocabulary, models, tensors)
        assert isinstance(base, TensorSource)
        assert torch.equal(read(other), torch.cat([tensors[1], tensors[0][112:]]))


def test_tokens_without_a_row_are_left_out(folders: dict[str, Path], tmp_path: Path) -> None:
    full = tiny_tokenizer()
    full.add_tokens([f"<UNUSED_{n}>" for n in range(4)])
    folders["full"] = saved(tmp_path / "full", full, TOKENS)
    for names in (("base", "full", "chat"), ("full", "base", "chat")):
        vocabulary, _ = planned(folders, *names, source="union")
        out = loaded(vocabulary, tmp_path / names[0] / "out")
        assert "<|im_start|>" in out.get_vocab()
        assert len(out) == TOKENS + 1
        assert out(TEXT).input_ids == tiny_tokenizer()(TEXT).input_ids


def test_plain_tokens_of_a_union_are_reached_by_their_merges(tmp_path: Path) -> None:
    document = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    document["model"]["vocab"] |= {"an" + "d": TOKENS, "Ġ" + "and": TOKENS + 1}
    document["model"]["merges"] += [["an", "d"], ["Ġ", "and"]]
    longer = saved(tmp_path / "longer", tiny_tokenizer(), TOKENS + 2)
    (longer / "tokenizer.json").write_text(json.dumps(document))
    folders = {"base": saved(tmp_path / "base", tiny_tokenizer(), TOKENS), "longer": longer}
    vocabulary, _ = planned(folders, source="union")
    out = loaded(vocabulary, tmp_path / "out")
    assert out.get_vocab() == AutoTokenizer.from_pretrained(longer).get_vocab()
    assert out("cat and").input_ids == AutoTokenizer.from_pretrained(longer)("cat and").input_ids


@pytest.mark.parametrize("kind", ["Qwen2Tokenizer", "LlamaTokenizer", "GPT2Tokenizer"])
def test_a_union_loads_as_the_class_that_its_settings_name(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    settings = json.loads((folders["base"] / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {
        str(n): {"content": token, "special": True} for n, token in ((0, "<pad>"), (1, "<eos>"))
    }
    (folders["base"] / "tokenizer_config.json").write_text(
        json.dumps(settings | {"tokenizer_class": kind, "unk_token": "<pad>", "bos_token": "<eos>"})
    )
    vocabulary, _ = planned(folders, source="union")
    out = loaded(vocabulary, tmp_path / "out")
    before = AutoTokenizer.from_pretrained(folders["base"])
    assert before.get_vocab().items() <= out.get_vocab().items()
    assert out.convert_tokens_to_ids("<|im_start|>") == TOKENS
    assert out(TEXT[:11]).input_ids == before(TEXT[:11]).input_ids


def test_an_older_form_of_a_tokenizer_is_read_as_transformers_reads_it(
    folders: dict[str, Path],
) -> None:
    document = json.loads((folders["base"] / "tokenizer.json").read_text())
    (folders["base"] / "tokenizer.json").unlink()
    (folders["base"] / "vocab.json").write_text(json.dumps(document["model"]["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in document["model"]["merges"])
    (folders["base"] / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    settings = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "<eos>", "bos_token": "<eos>"}
    settings |= {"pad_token": "<pad>", "eos_token": "<eos>"}
    (folders["base"] / "tokenizer_config.json").write_text(json.dumps(settings))
    vocabulary, _ = planned(folders, "base", "chat", source="union")
    written = json.loads(vocabulary.files["tokenizer.json"])["model"]
    assert written["vocab"] == document["model"]["vocab"] | {"<|im_start|>": TOKENS}
    assert written["merges"] == document["model"]["merges"]
    assert not vocabulary.files.keys() & {"vocab.json", "merges.txt"}


def test_a_model_without_a_tokenizer_is_taken_to_have_the_base_s(folders: dict[str, Path]) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folders["chat"] / name).unlink()
    vocabulary, models = planned(folders, "base", "chat", source="base")
    assert vocabulary.notes == [
        f"{models[1]} has no tokenizer; its tokens are taken to be those of {models[0]}."
    ]


def test_refuses_damaged_tokenizers_and_silent_configurations(folders: dict[str, Path]) -> None:
    for text in ("[", "[]", '{"model": {}}'):
        (folders["chat"] / "tokenizer.json").write_text(text)
        with pytest.raises(ModelError, match=r"tokenizer.json"):
            planned(folders, source="union")
    sound = json.loads((folders["fruit"] / "tokenizer.json").read_text())
    for key, wrong in {
        "vocab": {"a": -3}, "vocab ": {"a": "5"}, "vocab  ": {"a": 1.5},
        "merges": [["a", "b", "c"]], "merges ": 5, "merges  ": [[["a"], ["b"]]],
        "continuing_subword_prefix": 5,
    }.items():  # fmt: skip
        model = sound["model"] | {key.strip(): wrong}
        (folders["chat"] / "tokenizer.json").write_text(json.dumps(sound | {"model": model}))
        with pytest.raises(ModelError, match=r"tokenizer.json is damaged"):
            planned(folders, source="union")
    for size in (-4, 0):
        (folders["base"] / "config.json").write_text(json.dumps({"vocab_size": size}))
        with pytest.raises(ModelError, match=r"does not say how many tokens"):
            planned(folders, source="union")
    (folders["base"] / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"does not say how many tokens"):
        planned(folders, source="union")


def test_refuses_a_token_that_the_named_model_has_not(folders: dict[str, Path]) -> None:
    base = str(folders["base"])
    named = {"kind": "model_token", "model": base}
    for source, shown in (
        (base, "'banana'"),
        ({**named, "token": "apple"}, "'apple'"),
        ({**named, "token_id": 9999}, "number 9999"),
    ):
        with pytest.raises(MergeError, match=f"which has no row for {shown} among its"):
            planned(folders, tokens={"banana": {"source": source}})


def test_refuses_to_align_models_without_an_embedding_of_their_vocabulary(
    folders: dict[str, Path],
) -> None:
    vocabulary, models = planned(folders)
    plan = TensorPlan("embed", (3, 4), torch.float32, "linear", ())
    with pytest.raises(MergeError, match=r"no embedding with as many rows .*vocab_size: 7\)"):
        with_vocabulary(MergePlan([plan], {}, {"vocab_size": 7}, models[0]), vocabulary)


def test_refuses_a_token_from_a_model_without_part_in_the_tensor(folders: dict[str, Path]) -> None:
    vocabulary, models = planned(folders, tokens={"a": {"source": str(folders["fruit"])}})
    with pytest.raises(MergeError, match=r"has no part in 'embed'"):
        rearranged(vocabulary, models[:2], [embedding(0, TOKENS), embedding(1, TOKENS + 1)])


def test_refuses_an_embedding_with_fewer_rows_than_its_configuration_says(
    folders: dict[str, Path],
) -> None:
    vocabulary, models = planned(folders)
    with pytest.raises(MergeError, match=f"row {TOKENS} was asked for, but the tensor has 5 rows"):
        rearranged(vocabulary, models, [embedding(0, TOKENS), embedding(1, 5), embedding(2, 5)])


def test_refuses_a_union_with_plain_tokens_of_another_algorithm(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    document = json.loads((folders["base"] / "tokenizer.json").read_text())
    document["model"] = {"type": "WordLevel", "vocab": {"hello": 0}, "unk_token": "hello"}
    document["added_tokens"] = []
    folders["words"] = saved(tmp_path / "words", tiny_tokenizer(), TOKENS)
    (folders["words"] / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(MergeError, match=r"add 1 tokens to one of the algorithm BPE"):
        planned(folders, source="union")


def test_refuses_a_tokenizer_that_is_not_there(folders: dict[str, Path]) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folders["base"] / name).unlink()
    with pytest.raises(MergeError, match=r"tokenizer of .*base was asked for, and it has none"):
        planned(folders, source="base")
