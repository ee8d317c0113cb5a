"""Models that the scripts of this folder make, and what onnxruntime makes of real ones."""

from __future__ import annotations

from zoo.entry import Entry, Product, Script, Values

BATCH = "batch=1,3"
TOKENS = "batch=1,3 seq=5,17"
IDS = Values("ids", 300)
MASK = Values("mask")
POSITIONS = Values("positions")
CACHED = "batch=1,2 seq=1,4 past=6,11 attention_mask.1=7,15"
DECODER = {"input_ids": IDS, "attention_mask": Values("constant", 1), "position_ids": POSITIONS}
TEXT = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": Values("ids", 2)}
IMAGE = "batch=1,2 height=64,96 width=96,64"
OURS = "made here; random weights"

# function -> (what, sizes, values)
Row = tuple[str, str, dict[str, Values]]

TRANSFORMERS: dict[str, Row] = {
    "bert": ("encoder", TOKENS, TEXT),
    "distilbert": ("encoder", TOKENS, TEXT),
    "gpt2": ("decoder", TOKENS, TEXT),
    "llama": ("decoder, RoPE, RMSNorm, GQA", TOKENS, TEXT),
    "qwen2": ("decoder with caches, biases", CACHED, DECODER),
    "mistral": ("decoder with caches", CACHED, DECODER),
    "mistral_window": ("decoder, sliding window", TOKENS, TEXT),
    "mamba": ("state space model", TOKENS, TEXT),
    "t5": (
        "encoder and decoder",
        "batch=1,3 source_len=5,17 target_len=1,6",
        TEXT | {"decoder_input_ids": IDS},
    ),
    "whisper": ("audio encoder", BATCH, {}),
    "whisper_decoder": ("audio decoder, cross attention", TOKENS, TEXT),
    "vit": ("image encoder", BATCH, {}),
    "clip": ("text and image encoders", "texts=1,3 images=2,4 seq=5,17", TEXT),
}

TORCH: dict[str, Row] = {
    "lstm": ("tagger, bidirectional LSTM of two layers", TOKENS, {"input_ids": Values("ids", 200)}),
    "gru": ("tagger, bidirectional GRU of two layers", TOKENS, {"input_ids": Values("ids", 200)}),
    "rnn": ("tagger, bidirectional RNN of two layers", TOKENS, {"input_ids": Values("ids", 200)}),
    "transformer": (
        "torch.nn.Transformer",
        "batch=1,3 source_len=5,17 target_len=2,6",
        {"source": Values("ids", 200), "target": Values("ids", 200), "padding": MASK},
    ),
    "topk_head": ("TopK, softmax, gather", BATCH, {}),
    "unet": (
        "UNet with time and attention",
        "batch=1,2 height=16,32 width=32,16",
        {"time": Values("ids", 50)},
    ),
    "resnet18": ("ResNet-18, narrow", IMAGE, {}),
    "mobilenet_v3": ("MobileNetV3", IMAGE, {}),
    "efficientnet": ("EfficientNet", IMAGE, {}),
    "convnext": ("ConvNeXt", IMAGE, {}),
}

# What the old exporter fixes while it traces: each has one size, that of the trace.
FIXED = {
    "mamba-torchscript": "batch=2,2 seq=9,9",
    "transformer-torchscript": "batch=2,2 source_len=9,9 target_len=6,6",
    "unet-torchscript": "batch=2,2 height=32,32 width=48,48",
}

QUICK = {"bert", "gpt2", "qwen2", "lstm", "gru", "resnet18", "topk_head"}

# function -> (what, variants)
SKLEARN: dict[str, tuple[str, tuple[str, ...]]] = {
    "logistic": ("logistic regression", ("", "zipmap")),
    "linear": ("linear regression", ("",)),
    "mlp_scaler": ("scaler and MLP", ("",)),
    "imputer_normalizer": ("imputer, scaler, normalizer, logistic regression", ("",)),
    "forest": ("random forest", ("", "zipmap")),
    "forest_regressor": ("random forest", ("",)),
    "boosting": ("gradient boosting", ("",)),
    "boosting_regressor": ("gradient boosting", ("",)),
    "svm": ("support vectors", ("",)),
    "svm_regressor": ("support vectors", ("",)),
}

# base -> tools of zoo.products; the tolerance of what is rounded at run time is one step of 8 bits.
STEP = 1e-2
HALF = 5e-3
PRODUCTS: dict[str, dict[str, float]] = {
    "minilm-l3": {
        "fused-bert": 1e-4, "basic": 1e-4, "extended": 1e-4,
        "dynamic-int8": STEP, "dynamic-uint8": STEP, "dynamic-int8-channel": STEP,
        "qdq-u8s8": STEP, "qdq-s8s8-channel": STEP, "qdq-u16s8": STEP, "qoperator": STEP,
        "nbits2": 1e-4, "nbits4": 1e-4, "nbits4-asymmetric": 1e-4, "nbits4-qdq": 1e-4,
        "nbits4-gather": 1e-4, "nbits8": 1e-4, "float16": HALF, "float16-io": HALF,
    },
    "smollm2": {
        "extended": 3e-4, "dynamic-int8": STEP, "nbits2": 3e-4, "nbits4": 3e-4,
        "nbits4-asymmetric": 3e-4, "nbits8": 3e-4, "float16": HALF,
    },
    "ocr-cls": {
        "basic": 1e-4, "extended": 1e-4, "qdq-u8s8": STEP, "qoperator": STEP, "float16": HALF,
    },
    "resnet18-dynamo": {
        "extended": 1e-4, "qdq-u8s8": STEP, "qdq-s8s8-channel": STEP, "qoperator": STEP,
        "float16": HALF,
    },
    "bert-torchscript": {"fused-bert": 1e-4, "extended": 1e-4, "dynamic-int8": STEP},
    "bert-dynamo": {"fused-bert": 1e-4, "nbits4-gather": 1e-4, "float16": HALF},
    "gpt2-torchscript": {"fused-gpt2": 1e-4, "extended": 1e-4, "dynamic-int8": STEP},
    "llama-dynamo": {"fused-gpt2": 1e-4, "nbits4": 1e-4, "float16": HALF},
    "qwen2-torchscript": {"fused-gpt2": 1e-4, "nbits4-gather": 1e-4, "dynamic-int8": STEP},
    "t5-torchscript": {"fused-t5": 1e-4, "dynamic-int8": STEP},
    "vit-torchscript": {"fused-vit": 1e-4, "qdq-u8s8": STEP},
    "clip-torchscript": {"fused-clip": 1e-4},
    "unet-dynamo": {"float16": HALF},
    "whisper-torchscript": {"fused-bart": 1e-4},
    "lstm-torchscript": {"dynamic-int8": STEP},  # onnxruntime dies of an LSTM in float16
    "mobilenet-v3-dynamo": {"extended": 1e-4, "qoperator": STEP},
}  # fmt: skip


def of_torch(module: str, prefix: str, rows: dict[str, Row]) -> list[Entry]:
    """Every model by both of PyTorch's exporters."""
    return [
        Entry(
            name := f"{function.replace('_', '-')}-{exporter}",
            Script(module, function, exporter),
            f"{prefix}: {what}",
            OURS,
            FIXED.get(name, sizes),
            values,
            quick=function in QUICK,
        )
        for function, (what, sizes, values) in rows.items()
        for exporter in ("torchscript", "dynamo")
    ]


def of_sklearn() -> list[Entry]:
    return [
        Entry(
            "-".join(filter(None, ("sklearn", function.replace("_", "-"), variant))),
            Script("sklearn_models", function, variant),
            f"scikit-learn: {what}",
            "made here",
            "X.0=1,20",
            quick=True,
        )
        for function, (what, variants) in SKLEARN.items()
        for variant in variants
    ]


def smollm2() -> Entry:
    values = DECODER | {"input_ids": Values("ids", 49000)}
    return Entry(
        "smollm2",
        Script("", "smollm2"),
        "Llama-like decoder of 135 M with caches (tests/models/export_smollm2.py)",
        "Apache-2.0",
        CACHED,
        values,
        tolerance=3e-4,
        seconds=600,
    )


def of_onnxruntime(bases: list[Entry]) -> list[Entry]:
    by_name = {entry.name: entry for entry in bases}
    return [
        Entry(
            f"{base}-{tool}",
            Product(base, tool),
            f"onnxruntime's {tool} of {base}",
            by_name[base].licence,
            by_name[base].sizes,
            by_name[base].values,
            tolerance=max(tolerance, by_name[base].tolerance),
            flips=0.05 if tolerance == STEP else 0.0,
            seconds=by_name[base].seconds,
        )
        for base, tools in PRODUCTS.items()
        for tool, tolerance in tools.items()
    ]


ENTRIES = [
    smollm2(),
    *of_torch("transformers_models", "transformers", TRANSFORMERS),
    *of_torch("torch_models", "torch.nn", TORCH),
    *of_sklearn(),
]
