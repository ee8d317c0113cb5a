"""The chat template of a model: a question becomes the text that the model was trained to answer.

Templates are Jinja, with what Hugging Face's transformers puts into them (its documentation,
"Chat templates"): `messages`, `add_generation_prompt`, special tokens by name, the functions
`raise_exception` and `strftime_now`, the filter `tojson`, break and continue. A template comes with
the model, so it is rendered in Jinja's sandbox.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from abqc.compiler.generation.model_files import read_object
from abqc.errors import AbqcError, InputError

CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"


def chat_prompt(tokenizer: Path, question: str) -> str:
    """The text of one user's message, `question`, up to where the answer begins.

    The template is chat_template.jinja beside `tokenizer`, or `chat_template` in
    tokenizer_config.json. InputError where there is none, and where it cannot be rendered.
    """
    jinja2 = _import_jinja2()
    config = read_object(tokenizer.with_name(CONFIG))
    source = _template(tokenizer, config)
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = time.strftime
    try:
        return str(
            environment.from_string(source).render(
                messages=[{"role": "user", "content": question}],
                add_generation_prompt=True,
                **_special_tokens(config),
            )
        )
    except jinja2.TemplateError as error:
        raise InputError(f"the chat template of {tokenizer.parent} fails: {error}") from error
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise InputError(
            f"the chat template of {tokenizer.parent} fails: {type(error).__name__}: {error}"
        ) from error


def _import_jinja2() -> Any:
    try:
        import jinja2.sandbox
    except ImportError as error:
        raise AbqcError(
            "a chat template needs the package jinja2, which is missing",
            hint="install it with `pip install jinja2`",
        ) from error
    return jinja2


def _template(tokenizer: Path, config: Mapping[str, Any]) -> str:
    path = tokenizer.with_name(TEMPLATE)
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}: {error}") from error
    found = config.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    if not isinstance(found, str):
        raise InputError(
            f"there is no chat template beside {tokenizer}: neither {TEMPLATE} nor chat_template "
            f"in {CONFIG}",
            hint="copy them from the model's folder, or give the whole text without --chat",
        )
    return found


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and the like: texts, or objects that have them."""
    texts = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in config.items()
        if name.endswith("_token")
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise InputError(f"the chat template refuses this: {message}")
