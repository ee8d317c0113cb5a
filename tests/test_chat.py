"""`abqc generate --chat`: templates as models have them, and those that are missing or wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from abqc.compiler.generation.chat import chat_prompt
from abqc.compiler.generation.generate import _encode
from abqc.errors import InputError

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def prompt(folder: Path, template: Any, question: str = "Why?", **config: Any) -> str:
    config |= {} if template is None else {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return chat_prompt(folder / "tokenizer.json", question)


def test_a_template_of_a_model(tmp_path: Path) -> None:
    expected = (
        "<|im_start|>system\nBe brief<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt(tmp_path, CHATML) == expected
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}]
    assert prompt(tmp_path, named) == expected
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert prompt(tmp_path, CHATML) == "Why?!"


def test_what_templates_find(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{{ eos_token }}\n"
        "    {% for m in messages %}\n{{ m | tojson }}{% continue %}never{% endfor %}"
        "{{ strftime_now('%Y') }}"
    )
    text = prompt(tmp_path, template, "<é>", bos_token="<s>", eos_token={"content": "</s>"})
    year = time.strftime("%Y")
    assert text == '<s></s>\n{"role": "user", "content": "<é>"}' + year


def test_the_tokenizer_adds_no_tokens_of_its_own(tmp_path: Path) -> None:
    """A template begins with the token that begins a text, which a tokenizer would add again."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({"<s>": 0, "why": 1, "so": 2}, unk_token="so"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    words.add_special_tokens(["<s>"])
    text = prompt(tmp_path, "{{ bos_token }} {{ messages[0].content }}", "why", bos_token="<s>")
    assert [_encode(words, text, special) for special in (False, True)] == [[0, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "there is no chat template beside"),
        ([{"name": "tool_use", "template": "no"}], "there is no chat template beside"),
        ("{% if %}", "fails"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.append(1) }}", "fails"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "fails"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_templates_that_are_refused(tmp_path: Path, template: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prompt(tmp_path, template)
