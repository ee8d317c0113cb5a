"""Generate text with a compiled language model.

The model is a decoder as exporters write it: input_ids and, if it has them, attention_mask,
position_ids and caches past_key_values.*, which are updated in place; logits and present.* come
out. One without caches runs the whole sequence for every token. The text comes as it is made, on
stdout; how fast it was stands on stderr.

The tokenizer.json beside the library, or another one, makes tokens of the prompt, which is taken as
it is, or with --chat as a message in the model's chat template. The text ends with an end token,
which generation_config.json, config.json or tokenizer_config.json beside the tokenizer name, with a
text of --stop, after --max-tokens, or where the context that config.json states is full. The
likeliest token is taken unless --temperature is given.

With --draft, what followed the last tokens where they were before, in the prompt or the text, is
tried in the same run as the next one, and kept as far as it is what would have come: texts that
repeat come several tokens at a time. A run of 4 tokens takes a third longer than one of one on a
CPU, so 3 is a good number. The library must have the logits of all tokens (no --last-logits).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from abqc.compiler.commands.arguments import add_device, add_huge_pages, add_threads
from abqc.errors import InputError

if TYPE_CHECKING:
    from abqc.compiler.generation.generate import TextGeneration

NAME = "generate"
SUMMARY = "generate text with a compiled language model"
EXAMPLES = """examples:
  abqc generate model.so --prompt "The capital of France is" --max-tokens 32
  abqc generate model.so --chat --prompt "Why is the sky blue?"
  abqc generate model.so --prompt "Once upon a time" --temperature 0.8 --top-p 0.95 --seed 7
  abqc generate model.so --draft 3 --prompt - < function_to_rewrite.txt
  abqc generate model.so --tokenizer tokenizer.json --stop "<|im_end|>" --prompt - < chat.txt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="the library that `abqc compile` wrote")
    parser.add_argument(
        "--prompt", metavar="TEXT", required=True, help="what to go on from; - reads it from stdin"
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="the prompt is a user's message: put it into the chat template of "
        "tokenizer_config.json (or chat_template.jinja) beside the tokenizer",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        type=Path,
        help="a tokenizer.json (default: the one beside the library)",
    )
    parser.add_argument(
        "--max-tokens", metavar="N", type=token_count, help="how many at most (default: 256)"
    )
    parser.add_argument(
        "--stop",
        metavar="TEXT",
        action="append",
        default=[],
        help="end before this text, or with the special token of this name; may be repeated",
    )
    parser.add_argument(
        "--temperature",
        metavar="T",
        type=float,
        default=0.0,
        help="draw tokens, the likelier the colder (default: 0, the likeliest)",
    )
    parser.add_argument(
        "--top-p",
        metavar="P",
        type=float,
        default=1.0,
        help="with --temperature: draw from the likeliest tokens that have this probability "
        "together (default: 1, all)",
    )
    parser.add_argument(
        "--seed",
        metavar="S",
        type=int,
        default=0,
        help="with --temperature: another seed, another text (default: 0)",
    )
    parser.add_argument(
        "--draft",
        metavar="N",
        type=token_count,
        default=0,
        help="try N tokens that followed before together with the next one (default: none)",
    )
    add_device(parser)
    add_threads(parser)
    add_huge_pages(parser)


def token_count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of tokens")
    return int(text)


def run(args: argparse.Namespace) -> int:
    from abqc.compiler.generation.chat import chat_prompt
    from abqc.compiler.generation.generate import DEFAULT_TOKENS, TextGeneration
    from abqc.compiler.generation.model_files import read_model_facts
    from abqc.compiler.tokenizer import BESIDE, load_tokenizer
    from abqc.runtime.model import load
    from abqc.runtime.sampling import Sampler

    sampler = Sampler(args.temperature, args.top_p, args.seed)
    model = load(args.model, threads=args.threads, device=args.device, huge_pages=args.huge_pages)
    path = args.tokenizer or args.model.with_name("tokenizer.json")
    tokenizer = load_tokenizer(path, hint=f"{BESIDE}; --tokenizer names another one")
    facts = read_model_facts(path, tokenizer)
    prompt = read_prompt(args.prompt)
    if args.chat:
        prompt = chat_prompt(path, prompt)
    generation = TextGeneration(
        model,
        tokenizer,
        prompt,
        sampler,
        max_tokens=args.max_tokens or DEFAULT_TOKENS,
        end_tokens=facts.end_tokens,
        stop=args.stop,
        context=facts.context,
        special_tokens=not args.chat,
        draft=args.draft,
    )
    if not generation.has_caches:
        print("note: no caches, so every token runs the whole sequence", file=sys.stderr)
    return write(generation)


def read_prompt(given: str) -> str:
    """The prompt itself, or what stdin has of it."""
    if given != "-":
        return given
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InputError("the prompt is no UTF-8 text") from error


def write(generation: TextGeneration) -> int:
    """Text to stdout as it comes, then a line on stderr; the exit code."""
    interrupted = False
    try:
        for text in generation:
            print(text, end="", flush=True)
    except KeyboardInterrupt:
        interrupted = True
        print(generation.rest(), end="")
    print(flush=True)
    ended = "interrupted" if interrupted else f"ended by {generation.ended_by}"
    print(f"{generation.timing}; {ended}", file=sys.stderr)
    return 130 if interrupted else 0
