"""The chat template of a merged model: the commonest of its parents', a known one, or a text."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brickwork.combine.tokenizer_file import SETTINGS, TEMPLATE, tokenizer_files
from brickwork.errors import ModelError, UnknownNameError

_PLAIN = "{{ message['content'] | trim }}"
CHAT_TEMPLATES: Mapping[str, str] = {
    "alpaca": (
        "{%- set titles = {'user': 'Instruction', 'user_context': 'Input',"
        " 'assistant': 'Response'} -%}"
        "{%- for message in messages -%}"
        "{%- if message['role'] in titles -%}"
        "{{ '### ' + titles[message['role']] + ':\\n' }}" + _PLAIN + "{{ '\\n\\n' }}"
        "{%- elif message['role'] == 'system' -%}" + _PLAIN + "{{ '\\n\\n' }}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}"
    ),
    "chatml": (
        "{%- for message in messages -%}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
    ),
    "exaone": (
        "{%- if messages and messages[0]['role'] != 'system' -%}"
        "{{ '[|system|][|endofturn|]\\n' }}{%- endif -%}"
        "{%- for message in messages -%}"
        "{{ '[|' + message['role'] + '|]' + message['content'] }}"
        "{{ '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '[|assistant|]' }}{%- endif -%}"
    ),
    "llama3": (
        "{{- bos_token -}}"
        "{%- for message in messages -%}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
        + _PLAIN
        + "{{ '<|eot_id|>' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"
    ),
    "mistral": (
        "{{- bos_token -}}"
        "{%- set held = namespace(system='') -%}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'system' -%}"
        "{%- set held.system = message['content'] + '\\n\\n' -%}"
        "{%- elif message['role'] == 'user' -%}"
        "{{ ' [INST] ' + held.system + message['content'] + ' [/INST]' }}"
        "{%- set held.system = '' -%}"
        "{%- elif message['role'] == 'assistant' -%}"
        "{{ ' ' + message['content'] + eos_token }}"
        "{%- else -%}{{ raise_exception('no turn of the role ' + message['role']) }}"
        "{%- endif -%}{%- endfor -%}"
    ),
}


def choose_template(wanted: str, folders: Mapping[Any, Path]) -> str | None:
    """The chat template that a recipe means.

    Args:
        wanted: ``auto``: the commonest of the models, the first of equally common ones; a name in
            CHAT_TEMPLATES; or the template itself.
        folders: of the models, in the recipe's order.

    Returns:
        The template; None if no model has one under ``auto``.

    Raises:
        UnknownNameError: if it is none of these.
        ModelError: if a model's template or ``tokenizer_config.json`` is damaged.
    """
    if wanted == "auto":
        found = [template for folder in folders.values() if (template := _template(folder))]
        return Counter(found).most_common(1)[0][0] if found else None
    if "{" in wanted:
        return wanted
    if wanted not in CHAT_TEMPLATES:
        raise UnknownNameError("chat template", wanted, [*CHAT_TEMPLATES, "auto"])
    return CHAT_TEMPLATES[wanted]


def with_template(files: Mapping[str, bytes], template: str) -> dict[str, bytes]:
    """The files of a tokenizer with that chat template, and none besides.

    Args:
        files: all files of the tokenizer, as ``tokenizer_files`` reads them.
        template: in Jinja, as ``choose_template`` gives it.
    """
    kept = {name: raw for name, raw in files.items() if not name.endswith(".jinja")}
    settings = json.loads(kept.get(SETTINGS, b"{}"))
    if settings.pop("chat_template", None) is not None:
        kept[SETTINGS] = json.dumps(settings, ensure_ascii=False, indent=2).encode("utf-8")
    return kept | {TEMPLATE: template.encode("utf-8")}


def _template(folder: Path) -> str:
    """The default chat template of a model, empty if it has none."""
    files = tokenizer_files(folder)
    try:
        if TEMPLATE in files:
            return files[TEMPLATE].decode("utf-8").strip()
        stated = json.loads(files.get(SETTINGS, b"{}")).get("chat_template") or ""
        if isinstance(stated, list):  # several, by name
            stated = {entry["name"]: entry["template"] for entry in stated}.get("default", "")
        return str(stated).strip()
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        damaged = folder / (TEMPLATE if TEMPLATE in files else SETTINGS)
        raise ModelError(f"{damaged} is damaged ({error}); fetch it again.") from None
