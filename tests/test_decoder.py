"""Compiled decoders token by token: caches in place, without caches, of a fixed size; sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import abqc
import numpy as np
import onnx
import pytest
from abqc.errors import InputError
from abqc.runtime import decoder as decoders
from abqc.runtime.decoder import Decoder
from abqc.runtime.model import Model
from abqc.runtime.sampling import Sampler
from abqc.runtime.tensor_spec import TensorSpec
from language_model import grouped_query_model, language_model

VOCABULARY = 260
PROMPT = [5, 9, 2]

Compiled = Callable[..., Model]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Compiles a model, once for each name."""
    folder = tmp_path_factory.mktemp("decoders")
    models: dict[str, Model] = {}

    def compiled(name: str, model: onnx.ModelProto, **options: Any) -> Model:
        if name not in models:
            path = folder / f"{name}.onnx"
            onnx.save(model, path)
            models[name] = abqc.compile(path, output=path.with_suffix(".so"), **options)
        return models[name]

    return compiled


@pytest.fixture(scope="module")
def cached(build: Compiled) -> Model:
    return build("cached", language_model(VOCABULARY))


@pytest.fixture(scope="module")
def without(build: Compiled) -> Model:
    return build("without", language_model(VOCABULARY, caches=False))


def greedy(decoder: Decoder, count: int, prompt: list[int] = PROMPT) -> list[int]:
    tokens, new = [], prompt
    for _ in range(count):
        tokens.append(int(decoder.step(new).argmax()))
        new = tokens[-1:]
    return tokens


def test_caches_change_no_token(cached: Model, without: Model) -> None:
    with_caches, whole = Decoder(cached), Decoder(without)
    assert with_caches.has_caches and not whole.has_caches
    tokens = greedy(with_caches, 40)
    assert tokens == greedy(whole, 40) and len(set(tokens)) > 9
    assert with_caches.tokens == whole.tokens == (*PROMPT, *tokens[:-1])


@pytest.mark.parametrize(("name", "past", "present"), [("gqa-P", "P", "T"), ("fixed", 16, 16)])
def test_attention_reads_caches(build: Compiled, name: str, past: Any, present: Any) -> None:
    """In one kernel, where they are."""
    model = build(name, grouped_query_model(VOCABULARY, past, present))
    kernels = [launch.get("kernel", "") for launch in model.manifest["launches"]]
    assert any(kernel.startswith("attention_few") for kernel in kernels)
    assert not any(kernel.startswith("batch_matmul") for kernel in kernels)


def test_caches_grow_beyond_their_room(cached: Model) -> None:
    assert greedy(Decoder(cached, room=1), 40) == greedy(Decoder(cached, room=64), 40)


def test_a_long_prompt_is_run_in_parts(cached: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = list(range(40))
    whole = greedy(Decoder(cached), 5, prompt)
    monkeypatch.setattr(decoders, "CHUNK", 7)
    assert greedy(Decoder(cached), 5, prompt) == whole


def test_logits_are_those_of_the_last_token(cached: Model) -> None:
    decoder = Decoder(cached)
    logits = decoder.step(PROMPT)
    assert logits.shape == (VOCABULARY,) and logits.dtype == np.float32
    again = Decoder(cached)
    for token in PROMPT:
        one_by_one = again.step([token])
    assert np.allclose(logits, one_by_one, atol=1e-4)
    decoder.reset()
    assert decoder.tokens == () and np.array_equal(decoder.step(PROMPT), logits)


@pytest.mark.parametrize("name", ["cached", "without", "fixed"])
def test_tokens_are_tried_and_taken_back(build: Compiled, name: str, request: Any) -> None:
    fixed = name == "fixed"
    model = (
        build(name, grouped_query_model(VOCABULARY, 16, 16))
        if fixed
        else request.getfixturevalue(name)
    )
    decoder, again = Decoder(model, room=4), Decoder(model)
    decoder.check_drafts()
    decoder.step(PROMPT)
    tried = decoder.step_each([7, 1, 30, 4])
    assert tried.shape == (4, VOCABULARY) and tried.dtype == np.float32
    decoder.take_back(2)
    assert decoder.tokens == (*PROMPT, 7, 1)
    again.step(PROMPT)
    each = [again.step([token]) for token in (7, 1, 8)]
    np.testing.assert_allclose(tried[:2], each[:2], atol=1e-4)
    np.testing.assert_allclose(decoder.step([8]), each[2], atol=1e-4)
    with pytest.raises(InputError, match="of 6 tokens 7 cannot be taken back"):
        decoder.take_back(7)


def test_tokens_together_have_the_logits_of_each_alone(build: Compiled) -> None:
    """To the bit, where products have codes, of several groups too."""
    model = build("codes", language_model(VOCABULARY), quant="w4:g16 a8")
    together, alone = Decoder(model), Decoder(model)
    tokens = list(range(40, 48))
    each = [alone.step([token]) for token in (*PROMPT, *tokens)]
    together.step_each(PROMPT)
    np.testing.assert_array_equal(together.step_each(tokens), each[len(PROMPT) :])


def test_a_library_that_has_the_last_logits_alone(build: Compiled, cached: Model) -> None:
    model = build("last", language_model(VOCABULARY), last_logits=True)
    assert model.outputs[0].shape == ("B", 1, VOCABULARY)
    last, every = Decoder(model), Decoder(cached)
    for tokens in (PROMPT, [7], list(range(20))):
        np.testing.assert_allclose(last.step(tokens), every.step(tokens), atol=1e-5)
    for refused in (last.check_drafts, lambda: last.step_each([1])):
        with pytest.raises(InputError, match="logits of the last token of a run alone"):
            refused()


def test_quantized_caches(build: Compiled) -> None:
    model = build("kv8", language_model(VOCABULARY), quant="kv8")
    assert {spec.dtype for spec in model.inputs if spec.name.startswith("past")} == {"uint8"}
    assert len(greedy(Decoder(model, room=2), 12)) == 12


@pytest.mark.parametrize("sizes", [("P", "T"), ("capacity", "capacity")], ids=str)
def test_grouped_queries_whose_caches_grow(build: Compiled, sizes: tuple[str, str]) -> None:
    fixed = build("fixed", grouped_query_model(VOCABULARY, 16, 16))
    model = build(f"gqa-{sizes[0]}", grouped_query_model(VOCABULARY, *sizes))
    assert Decoder(model).limit is None
    assert greedy(Decoder(model, room=4), 13) == greedy(Decoder(fixed), 13)


def test_caches_of_a_fixed_size_are_filled_and_no_more(build: Compiled) -> None:
    decoder = Decoder(build("fixed", grouped_query_model(VOCABULARY, 16, 16)))
    assert decoder.limit == 16
    greedy(decoder, 14)
    with pytest.raises(InputError, match="hold 16 tokens, which are 16 and 1 more"):
        decoder.step([0])


def test_on_a_gpu_caches_stay_there(build: Compiled, cached: Model) -> None:
    model = build("gpu", language_model(VOCABULARY), target="sm_80", device="ptx-vm")
    assert greedy(Decoder(model), 3) == greedy(Decoder(cached), 3)


# ---- models that are made up ----


class Fake:
    """A model of given sizes; its logits are the last token's row of a table."""

    path, device = "fake.so", "cpu"

    def __init__(self, *inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = ()) -> None:
        self.inputs = [TensorSpec("input_ids", "int64", ("b", "s")), *inputs]
        self.outputs = [TensorSpec("logits", "float32", ("b", "s", 4)), *outputs]
        self.feeds: list[Mapping[str, np.ndarray]] = []
        self.given: list[Mapping[str, np.ndarray]] = []
        self.table = np.eye(4, dtype=np.float32)

    def run(self, inputs: Any, *, outputs: Any = None, device: str | None = None) -> list[Any]:
        caches = {name: np.asarray(inputs[name]) for name in inputs if name.startswith("past")}
        others = {name: np.asarray(inputs[name]).copy() for name in inputs if name not in caches}
        self.feeds.append(caches | others)
        self.given.append({name: np.asarray(value) for name, value in (outputs or {}).items()})
        made = [np.full((1, 2, 3), len(self.feeds), np.float32) for _ in self.outputs[1:]]
        return [self.table[self.feeds[-1]["input_ids"]], *made]

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> FakeBound:
        return FakeBound(self, inputs, outputs)


class FakeBound:
    def __init__(self, model: Fake, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        results = self.model.run({**inputs, **self.inputs}, outputs=self.outputs)
        names = [spec.name for spec in self.model.outputs]
        made = dict(zip(names, results, strict=True))
        if "logits" in self.outputs:
            self.outputs["logits"][...] = made["logits"]
        return {name: made[name] for name in made if name not in self.outputs}


def cache(role: str, rows: str | int | None, name: str = ".0.key") -> TensorSpec:
    return TensorSpec(f"{role}{name}", "float32", ("b", 2, rows, 3))


def test_a_cache_is_one_buffer_on_both_sides() -> None:
    model = Fake(cache("past_key_values", "p"), outputs=(cache("present", "p + s"),))
    decoder = Decoder(model, room=8)
    decoder.step([1, 2])
    decoder.step([3])
    buffers = [model.feeds[i]["past_key_values.0.key"] for i in (0, 1)]
    grown = [given["present.0.key"] for given in model.given]
    assert [b.shape[2] for b in buffers] == [0, 2] and [g.shape[2] for g in grown] == [2, 3]
    addresses = {array.__array_interface__["data"][0] for array in (*buffers, *grown)}
    assert len(addresses) == 1


def test_states_go_from_run_to_run() -> None:
    state = ("b", 2, 3)
    model = Fake(
        TensorSpec("past_conv.0", "float32", state),
        outputs=(TensorSpec("present_conv.0", "float32", state),),
    )
    decoder = Decoder(model)
    assert decoder.limit is None
    for _ in range(3):
        decoder.step([1])
    assert [feeds["past_conv.0"].flat[0] for feeds in model.feeds] == [0, 1, 2]
    with pytest.raises(InputError, match=r"its input 'past_conv\.0' has seen them"):
        decoder.take_back(1)


def test_what_else_is_fed() -> None:
    model = Fake(
        TensorSpec("attention_mask", "int32", ("b", 6)),
        TensorSpec("position_ids", "int64", ("b", "s")),
        TensorSpec("num_logits_to_keep", "int64", ()),
        cache("past_key_values", None),
        outputs=(cache("present", None),),
    )
    decoder = Decoder(model)
    decoder.step([1, 2])
    decoder.step([3])
    feeds = model.feeds[1]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0]]
    assert feeds["attention_mask"].dtype == np.int32
    assert feeds["position_ids"].tolist() == [[2]] and feeds["num_logits_to_keep"] == 1
    decoder.step_each([0, 1, 2])
    assert model.feeds[2]["num_logits_to_keep"] == 3
    model.outputs[0] = TensorSpec("logits", "float32", ("b", 1, 4))  # by --last-logits
    with pytest.raises(InputError, match="logits of the last token of a run alone"):
        decoder.step_each([0])


def test_models_with_the_logits_of_fewer_tokens_than_asked_for_are_refused() -> None:
    class OneRow(Fake):
        def run(self, inputs: Any, **_: Any) -> list[Any]:
            return [np.zeros((1, 1, 4), np.float32)]

    decoder = Decoder(OneRow())
    decoder.step([0, 1])
    with pytest.raises(InputError, match=r"fake\.so has the logits of 1 tokens where those of 3 "):
        decoder.step_each([0, 1, 2])
    assert decoder.tokens == (0, 1)


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ((TensorSpec("pixels", "float32", (1, 3)),), (), "nothing to feed to its input pixels"),
        ((cache("past", "p"),), (cache("present", "t", ".1.key"),), "no output belongs to the"),
        ((cache("past", 8),), (cache("present", "8 + s"),), "how the cache past.0.key"),
        ((TensorSpec("attention_mask", "float32", (1, 1, "s", "t")),), (), "'attention_mask' is"),
    ],
)
def test_models_that_are_no_decoders(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Decoder(Fake(*inputs, outputs=outputs))


def test_names_found_and_wanted_are_in_the_error(compiled: Callable[[str, str], Path]) -> None:
    with pytest.raises(InputError) as error:
        Decoder(abqc.load(compiled("digits_mlp", "none")))
    text = str(error.value)
    assert "inputs are X, its outputs" in text and "past_key_values.0.key" in text


def test_sizes_that_are_pinned_are_refused() -> None:
    model = Fake()
    model.inputs = [TensorSpec("input_ids", "int64", (1, 128))]
    with pytest.raises(InputError, match="takes 128 tokens at a time"):
        Decoder(model)


def test_a_model_of_one_token_takes_a_prompt_token_by_token() -> None:
    model = Fake(cache("past", "p"), outputs=(cache("present", "p + 1"),))
    model.inputs[0] = TensorSpec("input_ids", "int64", (1, 1))
    decoder = Decoder(model)
    decoder.step([1, 2, 3])
    assert [feeds["input_ids"].tolist() for feeds in model.feeds] == [[[1]], [[2]], [[3]]]
    with pytest.raises(InputError, match="one token at a time"):
        decoder.check_drafts()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [([], "at least one token"), ([4], "token 4 is not in"), ([1, -1], "token -1 is not in")],
)
def test_tokens_that_are_none(tokens: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Decoder(Fake()).step(tokens)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers(bad: float) -> None:
    model = Fake()
    model.table = np.array([[0, bad, 0, 0]], np.float32)
    with pytest.raises(InputError, match=r"logits of fake\.so have NaN or infinity"):
        Decoder(model).step([0])


# ---- sampling ----


def test_greedy_takes_the_first_of_equals() -> None:
    assert Sampler()(np.array([0, 3, 3, 1], np.float32)) == 1


def test_a_seed_fixes_what_is_drawn() -> None:
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)

    def drawn(seed: int) -> list[int]:
        sampler = Sampler(1.0, 0.9, seed)
        return [sampler(logits) for _ in range(20)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_tokens_are_drawn_by_their_probability() -> None:
    probabilities = np.array([0.5, 0.25, 0.15, 0.1])
    logits = (2 * np.log(probabilities)).astype(np.float32)  # what a temperature of 2 undoes
    for top_p, kept in ((1.0, 4), (0.76, 3), (0.75, 2), (0.1, 1)):
        sampler = Sampler(2.0, top_p)
        counts = np.bincount([sampler(logits) for _ in range(4000)], minlength=4)
        expected = np.where(np.arange(4) < kept, probabilities, 0)
        assert np.allclose(counts / 4000, expected / expected.sum(), atol=0.03), top_p


def test_masked_tokens_are_never_drawn() -> None:
    sampler = Sampler(100.0)
    logits = np.array([-np.inf, 0, -np.inf, 0], np.float32)
    assert {sampler(logits) for _ in range(50)} == {1, 3}


@pytest.mark.parametrize(
    "arguments", [(-1.0,), (float("nan"),), (1.0, 0.0), (1.0, 1.1), (1, 1, -1)]
)
def test_settings_that_make_no_sense(arguments: tuple) -> None:
    with pytest.raises(InputError, match="expected"):
        Sampler(*arguments)
