"""Chat templates: the known ones as they are published, the commonest, and refusals."""

import json
from pathlib import Path

import pytest

from brickwork.combine.chat_template import CHAT_TEMPLATES, choose_template, with_template
from brickwork.errors import ModelError, UnknownNameError
from tests.tiny import tiny_tokenizer

TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho"},
    {"role": "user", "content": "And?"},
]
# Written by hand after the models' own documentation.
EXPECTED = {
    "alpaca": "Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHo\n\n### Instruction:\nAnd?\n\n"
    "### Response:\n",
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHo<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "exaone": "[|system|]Be kind.[|endofturn|]\n[|user|]Hi\n[|assistant|]Ho[|endofturn|]\n"
    "[|user|]And?\n[|assistant|]",
    "llama3": "<pad><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHo<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nAnd?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<pad> [INST] Be kind.\n\nHi [/INST] Ho<eos> [INST] And? [/INST]",
}


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_a_known_template_writes_a_talk_as_its_models_know_it(name: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<pad>"
    tokenizer.chat_template = choose_template(name, {})
    said = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert said == EXPECTED[name]


def folder(path: Path, **files: str) -> Path:
    path.mkdir()
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


def test_auto_takes_the_commonest_wherever_it_is_kept(tmp_path: Path) -> None:
    several = [{"name": "tools", "template": "{t}"}, {"name": "default", "template": "{b}"}]
    folders = {
        "one": folder(tmp_path / "one", chat_template__jinja="{a}"),
        "none": folder(tmp_path / "none"),
        "two": folder(tmp_path / "two", tokenizer_config__json='{"chat_template": "{b} "}'),
    }
    assert choose_template("auto", folders) == "{a}"
    text = json.dumps({"chat_template": several})
    folders["three"] = folder(tmp_path / "three", tokenizer_config__json=text)
    assert choose_template("auto", folders) == "{b}"
    assert choose_template("auto", {"none": folders["none"]}) is None


def test_a_template_of_one_s_own_replaces_all_others() -> None:
    files = {
        "chat_template.jinja": b"{a}",
        "additional_chat_templates/tools.jinja": b"{t}",
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b'{"chat_template": "{b}", "eos_token": "x"}',
    }
    found = with_template(files, "{{ own }}")
    assert found.keys() == {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
    assert found["chat_template.jinja"] == b"{{ own }}"
    assert json.loads(found["tokenizer_config.json"]) == {"eos_token": "x"}


def test_refuses_a_name_that_no_template_has() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'chatml'"):
        choose_template("chatlm", {})


def test_refuses_damaged_settings(tmp_path: Path) -> None:
    broken = folder(tmp_path / "broken", tokenizer_config__json="[")
    with pytest.raises(ModelError, match=r"tokenizer_config.json is damaged"):
        choose_template("auto", {"broken": broken})


def test_refuses_a_template_that_is_no_text(tmp_path: Path) -> None:
    broken = folder(tmp_path / "broken")
    (broken / "chat_template.jinja").write_bytes(b"\xff{{ messages }}")
    with pytest.raises(ModelError, match=r"chat_template.jinja is damaged"):
        choose_template("auto", {"broken": broken})
