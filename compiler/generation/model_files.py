"""What files beside a tokenizer.json say about a model: its end tokens and its context."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abqc.errors import InputError

CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length")


@dataclass(frozen=True)
class ModelFacts:
    """`end_tokens` end a text; `context` is how many tokens the model can see, None: not known."""

    end_tokens: frozenset[int] = frozenset()
    context: int | None = None


def read_model_facts(tokenizer: Path, reader: Any) -> ModelFacts:
    """From generation_config.json, config.json and tokenizer_config.json beside `tokenizer`.

    End tokens are those of the first file that names any; `reader` is the tokenizer, which knows
    the number of one that is named by its text. Raises InputError for a file that is no JSON.
    """
    generation, config, names = (
        read_object(tokenizer.with_name(f"{name}.json"))
        for name in ("generation_config", "config", "tokenizer_config")
    )
    end = _ids(generation.get("eos_token_id")) or _ids(config.get("eos_token_id"))
    return ModelFacts(end or _named(names.get("eos_token"), reader), _context(config))


def read_object(path: Path) -> Mapping[str, Any]:
    """The object of a JSON file, empty where there is no file. Raises InputError."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"cannot read {path}: it holds no JSON object")
    return content


def _ids(value: Any) -> frozenset[int]:
    values = value if isinstance(value, list) else [value]
    return frozenset(v for v in values if isinstance(v, int))


def _named(value: Any, reader: Any) -> frozenset[int]:
    """The number of a token that is given as its text, or as an object that has it."""
    text = value.get("content") if isinstance(value, dict) else value
    token = reader.token_to_id(text) if isinstance(text, str) else None
    return frozenset() if token is None else frozenset([token])


def _context(config: Mapping[str, Any]) -> int | None:
    return next((config[n] for n in CONTEXT_NAMES if isinstance(config.get(n), int)), None)
