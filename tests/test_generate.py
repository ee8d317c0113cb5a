"""`abqc generate`: whole characters, ends, errors, and the command itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import abqc
import numpy as np
import onnx
import pytest
from abqc.compiler import cli
from abqc.compiler.generation.detokenizer import Detokenizer, StopTexts
from abqc.compiler.generation.generate import TextGeneration
from abqc.compiler.generation.model_files import ModelFacts, read_model_facts
from abqc.compiler.generation.prompt_lookup import PromptLookup
from abqc.errors import InputError
from abqc.runtime.sampling import Sampler
from abqc.runtime.tensor_spec import TensorSpec
from language_model import language_model

END = 256


class Bytes:
    """A tokenizer whose tokens are bytes, and <end>, which is special."""

    def encode(self, text: str) -> Any:
        return SimpleNamespace(ids=list(text.encode()))

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < END).decode(errors="replace")

    def token_to_id(self, text: str) -> int | None:
        return END if text == "<end>" else None

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        return END + with_added_tokens


class Scripted:
    """A model without caches that goes on as `answer` says after a prompt of `prompt` bytes,
    whatever else stands there."""

    path, device = "scripted.so", "cpu"
    inputs = (TensorSpec("input_ids", "int64", ("b", "s")),)
    outputs = (TensorSpec("logits", "float32", ("b", "s", END + 1)),)

    def __init__(self, answer: Sequence[int], prompt: int = 1) -> None:
        self._answer = answer
        self._prompt = prompt
        self.runs = 0

    def run(self, inputs: Mapping[str, np.ndarray], **_: Any) -> list[np.ndarray]:
        logits = np.zeros((*inputs["input_ids"].shape, END + 1), np.float32)
        for at in range(logits.shape[1]):
            logits[0, at, self._answer[(at + 1 - self._prompt) % len(self._answer)]] = 1
        self.runs += 1
        return [logits]

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> ScriptedRuns:
        return ScriptedRuns(self, inputs, outputs)


class ScriptedRuns:
    def __init__(self, model: Scripted, *tensors: Mapping[str, Any]) -> None:
        self._model = model
        self._inputs, self._outputs = tensors

    def run(self, _: Mapping[str, Any]) -> dict[str, np.ndarray]:
        [logits] = self._model.run({name: np.asarray(a) for name, a in self._inputs.items()})
        if "logits" not in self._outputs:
            return {"logits": logits}
        self._outputs["logits"][...] = logits
        return {}


def generation(answer: str | Sequence[int], **options: Any) -> TextGeneration:
    tokens = list(answer.encode()) if isinstance(answer, str) else answer
    return TextGeneration(Scripted(tokens), Bytes(), "?", Sampler(), **options)


# ---- text of tokens ----


def test_incomplete_characters_are_held_back() -> None:
    text = "aé€😀b"
    detokenizer = Detokenizer(Bytes())
    pieces = [detokenizer.add(byte) for byte in text.encode()]
    assert [piece for piece in pieces if piece] == list(text)
    assert detokenizer.rest() == ""


def test_what_stays_incomplete_is_replaced_at_the_end() -> None:
    detokenizer = Detokenizer(Bytes())
    assert detokenizer.add(0xE2) == detokenizer.add(0x82) == ""
    assert detokenizer.rest() == "\ufffd" and detokenizer.rest() == ""


def test_bytes_that_are_no_character_do_not_hold_up_the_rest() -> None:
    detokenizer = Detokenizer(Bytes())
    assert [detokenizer.add(byte) for byte in (0xFF, ord("a"), ord("b"))] == ["", "\ufffda", "b"]


def test_the_first_word_keeps_its_space() -> None:
    """As tokenizers of sentencepiece decode: the first space of all is dropped."""
    words = SimpleNamespace(decode=lambda ids: "".join(f" word{i}" for i in ids).removeprefix(" "))
    assert Detokenizer(words, [7, 8]).add(9) == " word9"
    assert Detokenizer(words).add(9) == "word9"


def test_a_prompt_that_is_cut_within_a_character_is_none_of_the_text() -> None:
    prompt = list("😀😀".encode())
    assert Detokenizer(Bytes(), prompt).add(ord("a")) == "a"


def test_stop_texts_are_not_passed_on() -> None:
    stop = StopTexts(["\nUser:", "##"])
    pieces = [stop.add(piece) for piece in ("so", " it\n", "Us", "ual#", "a", "\nUser: no", "x")]
    assert pieces == ["so", " it", "", "\nUsual", "#a", "", ""]
    assert stop.found and stop.rest() == ""


def test_the_beginning_of_a_stop_text_comes_at_the_end() -> None:
    stop = StopTexts(["stop"])
    assert stop.add("to st") == "to " and stop.rest() == "st" and not stop.found
    assert StopTexts([]).add("any") == "any"


# ---- drafts ----


def test_what_followed_before_is_the_draft() -> None:
    known = PromptLookup(b"one, two, one, six, o")
    assert bytes(known.draft(3)) == b"ne,"
    known.add(ord("n"))
    assert bytes(known.draft(5)) == b"e, si"
    assert bytes(PromptLookup(b"two one. to one").draft(3)) == b". t"
    assert PromptLookup(b"abc").draft(3) == PromptLookup().draft(3) == []


def test_a_draft_goes_on_repeating() -> None:
    assert bytes(PromptLookup(b"ab ab ").draft(7)) == b"ab ab a"


@pytest.mark.parametrize("draft", [1, 3, 50])
def test_drafts_change_no_token(draft: int) -> None:
    answer = "to be, or not to be, and to be or what it is to be, or not to be, and"
    for options in ({}, {"max_tokens": 60}, {"context": 50}, {"stop": ["what"]}):
        plain, drafted = generation(answer, **options), generation(answer, **options, draft=draft)
        assert "".join(drafted) == "".join(plain) != ""
        assert drafted.ended_by == plain.ended_by and drafted.timing.made == plain.timing.made
        assert 0 < drafted.timing.guessed <= drafted.timing.drafted
        said = f"; {drafted.timing.guessed} of {drafted.timing.drafted} drafted tokens were right"
        assert str(drafted.timing).endswith(said) and "drafted" not in str(plain.timing)


def test_drafts_save_runs() -> None:
    model = Scripted(list(b"again and "))
    made = TextGeneration(model, Bytes(), "?", Sampler(), max_tokens=90, draft=3)
    assert "".join(made) == 9 * "again and "
    assert model.runs == 90 - made.timing.guessed < 40


# ---- where it ends ----


def test_ends() -> None:
    for options, text, why in (
        ({"max_tokens": 3}, "abc", "max tokens"),
        ({"context": 5}, "abca", "context"),
        ({"stop": ["ca"]}, "ab", "stop text"),
        ({"end_tokens": [ord("c")]}, "ab", "end token"),
    ):
        made = generation("abc", **options)
        assert "".join(made) == text
        assert made.ended_by == why
        assert made.timing.made == {"stop text": 4}.get(why, len(text) + (why == "end token"))


def test_a_stop_text_that_is_a_special_token() -> None:
    made = generation([ord("a"), END], stop=["<end>"])
    assert "".join(made) == "a" and made.ended_by == "end token"


def test_timing_counts_prompt_and_tokens() -> None:
    made = generation("abc", max_tokens=6)
    list(made)
    assert (made.timing.prompt, made.timing.made) == (1, 6)
    assert 0 < made.timing.first < made.timing.last
    assert str(made.timing).startswith("prompt 1 tokens, ")
    assert "; generated 6 tokens, " in str(made.timing)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "the prompt is empty"),
        ("four", {"context": 4}, "the prompt has 4 tokens, the model's context is 4"),
    ],
)
def test_prompts_that_are_refused(prompt: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TextGeneration(Scripted([1]), Bytes(), prompt, Sampler(), **options)


def test_a_tokenizer_of_another_model() -> None:
    model = Scripted([1])
    model.outputs = (TensorSpec("logits", "float32", ("b", "s", 100)),)
    with pytest.raises(InputError, match="has 256 tokens, the model's vocabulary 100"):
        TextGeneration(model, Bytes(), "?", Sampler())


def test_what_files_beside_the_tokenizer_say(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    assert read_model_facts(tokenizer, Bytes()) == ModelFacts()
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<end>"}}')
    assert read_model_facts(tokenizer, Bytes()) == ModelFacts(frozenset([END]))
    (tmp_path / "config.json").write_text('{"eos_token_id": 3, "max_position_embeddings": 99}')
    assert read_model_facts(tokenizer, Bytes()) == ModelFacts(frozenset([3]), 99)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [4, 5]}')
    assert read_model_facts(tokenizer, Bytes()) == ModelFacts(frozenset([4, 5]), 99)
    for broken in ("{", "[]"):
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(InputError, match=r"cannot read .*config\.json"):
            read_model_facts(tokenizer, Bytes())


# ---- the command ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cached.so and whole.so, without caches, beside a tokenizer.json: bytes, and <end>."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("language")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: number for number, text in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, caches in (("cached", True), ("whole", False)):
        onnx.save(language_model(END + 1, caches=caches), folder / f"{name}.onnx")
        abqc.compile(folder / f"{name}.onnx", output=folder / f"{name}.so")
    return folder


Answer = tuple[int, str, str]


@pytest.fixture
def generate(capsys: pytest.CaptureFixture[str], folder: Path) -> Callable[..., Answer]:
    def run(library: str, *arguments: object) -> Answer:
        code = cli.main(["generate", str(folder / library), *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_a_text_is_the_same_without_caches(generate: Callable[..., Answer]) -> None:
    code, text, said = generate("cached.so", "--prompt", "Once", "--max-tokens", 30)
    assert code == 0 and text.endswith("\n") and len(text) > 5
    assert said.startswith("prompt 4 tokens, ") and "generated 30 tokens" in said
    assert said.endswith("; ended by max tokens\n") and len(said.splitlines()) == 1
    code, again, said = generate("whole.so", "--prompt", "Once", "--max-tokens", 30)
    assert (code, again) == (0, text)
    assert said.splitlines()[0] == "note: no caches, so every token runs the whole sequence"


def test_sampling_depends_on_the_seed(generate: Callable[..., Answer]) -> None:
    def drawn(seed: int) -> str:
        arguments = ("--temperature", 1, "--top-p", 0.9, "--seed", seed, "--max-tokens", 20)
        return generate("cached.so", "--prompt", "Once", *arguments)[1]

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize("library", ["cached.so", "whole.so"])
def test_a_text_is_the_same_with_drafts(generate: Callable[..., Answer], library: str) -> None:
    for options in ((), ("--temperature", 0.3)):
        arguments = ("--prompt", "Once Once Once Once", "--max-tokens", 60, *options)
        _, text, _ = generate(library, *arguments)
        code, drafted, said = generate(library, *arguments, "--draft", 3)
        assert (code, drafted) == (0, text)
        assert " drafted tokens were right; ended by max tokens" in said


def test_it_stops_before_a_text(generate: Callable[..., Answer]) -> None:
    _, text, _ = generate("cached.so", "--prompt", "Once", "--max-tokens", 30)
    stop = text[3:5]
    code, cut, said = generate("cached.so", "--prompt", "Once", "--stop", stop)
    assert (code, cut) == (0, text[: text.index(stop)] + "\n")
    assert said.endswith("ended by stop text\n")


def test_a_prompt_from_stdin(
    generate: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, text, _ = generate("cached.so", "--prompt", "Once", "--max-tokens", 5)
    monkeypatch.setattr(sys.stdin, "read", lambda: "Once")
    assert generate("cached.so", "--prompt", "-", "--max-tokens", 5)[1] == text


def test_errors_are_one_line(
    generate: Callable[..., Answer], folder: Path, tmp_path: Path, digits_library: Path
) -> None:
    away = tmp_path / "absent.json"
    for library, arguments, message in (
        ("cached.so", ("--prompt", ""), "the prompt is empty"),
        ("cached.so", ("--prompt", "\udcff"), "the prompt is no UTF-8 text"),
        ("cached.so", ("--prompt", "a", "--tokenizer", away), f"there is no file {away}"),
        ("cached.so", ("--prompt", "a", "--top-p", "0"), "top-p is 0.0"),
        (digits_library, ("--prompt", "a", "--tokenizer", folder / "tokenizer.json"),
         "its inputs are X"),
    ):  # fmt: skip
        code, text, said = generate(library, *arguments)
        assert (code, text) == (1, "")
        assert said.startswith("abqc: error: ") and message in said
        assert len(said.splitlines()) == 1


@pytest.fixture(scope="module")
def digits_library(compiled: Callable[[str, str], Path]) -> Path:
    return compiled("digits_mlp", "none")


def test_the_package_that_is_missing(
    generate: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    code, _, said = generate("cached.so", "--prompt", "a")
    assert code == 1 and "pip install tokenizers" in said


def test_the_end_token_and_the_context_of_a_configuration(
    generate: Callable[..., Answer], folder: Path
) -> None:
    config = folder / "config.json"
    try:
        config.write_text(json.dumps({"max_position_embeddings": 9}))
        _, text, said = generate("cached.so", "--prompt", "Once")
        assert "generated 5 tokens" in said and said.endswith("ended by context\n")
        config.write_text(json.dumps({"eos_token_id": list(range(END + 1))}))
        _, text, said = generate("cached.so", "--prompt", "Once")
        assert text == "\n" and said.endswith("ended by end token\n")
    finally:
        config.unlink()


def test_the_example_makes_the_same_text(generate: Callable[..., Answer], folder: Path) -> None:
    _, text, _ = generate("cached.so", "--prompt", "Once", "--max-tokens", 64)
    program = Path(__file__).parent.parent / "examples" / "generate.py"
    done = subprocess.run(
        [sys.executable, str(program), str(folder / "cached.so"), "Once"],
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode() == text


@pytest.fixture
def endless(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "abqc.compiler.cli", "generate", str(folder / "whole.so")]
    process = subprocess.Popen(
        [*command, "--prompt", "Once", "--max-tokens", "100000"],
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    yield process
    process.kill()
    process.wait()


def test_an_interrupt_keeps_what_was_printed(endless: subprocess.Popen[bytes]) -> None:
    assert endless.stdout is not None
    begun = os.read(endless.stdout.fileno(), 1)
    time.sleep(0.3)
    endless.send_signal(signal.SIGINT)
    rest, said = endless.communicate(timeout=60)
    assert endless.returncode == 130
    assert (begun + rest).decode().endswith("\n")
    assert said.decode().splitlines()[-1].endswith("; interrupted")
    assert "Traceback" not in said.decode() and "error" not in said.decode()
