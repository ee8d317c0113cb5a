"""Operators that are refused on purpose, and why. What is in no table is merely not there yet.

`docs/operators.md` and the errors of a compile are made from this.
"""

from __future__ import annotations

from .registry import MICROSOFT, ML

TRAINING = "training is not inference"
STRINGS = "strings: do this before the model, on its inputs"
IMAGES = "images are decoded before the model"
MAPS = "its maps are no tensors"
SEARCH = "a search over sequences: run the decoder step by step from outside of the model"
CACHES = "caches that are pages or are shared by several requests belong to a server's runtime"
ORDERED = "an order of memory for one GPU's library"
VENDOR = "it holds another compiler's code"
SPARSE = "attention that is sparse or packed without padding has no kernel here"
SPARSE_DATA = "sparse tensors are not tensors here"
NEW = "it is not settled in onnxruntime yet, and no published model has it"
REPLACED = "an early trial: MatMulNBits has taken its place"
HARDWARE = "it is of one vendor's hardware"
NO_KERNEL = "onnxruntime has no kernel for it either"
UNDEFINED = "onnxruntime documents no meaning for it: 'for internal use'"
INTERNAL = "onnxruntime inserts it itself: compile the model before its optimizer has run"

_BY_REASON: dict[tuple[str, str], str] = {
    ("", STRINGS): "RegexFullMatch StringConcat StringNormalizer StringSplit",
    ("", IMAGES): "ImageDecoder",
    (ML, MAPS): "CastMap DictVectorizer",
    (ML, STRINGS): "CategoryMapper",
    ("ai.onnx.preview.training", TRAINING): "Adagrad Adam Gradient Momentum",
    (MICROSOFT, STRINGS): "MurmurHash3 Tokenizer",
    (MICROSOFT, TRAINING): (
        "BiasDropout BitmaskBiasDropout BitmaskDropout BifurcationDetector IsAllFinite"
    ),
    (MICROSOFT, SEARCH): (
        "BeamSearch GreedySearch NGramRepeatBlock Sampling SpeculativePrefixCommit "
        "WhisperBeamSearch"
    ),
    (MICROSOFT, CACHES): (
        "DecoderAttention DecoderMaskedSelfAttention PagedAttention SparsePagedAttention"
    ),
    (MICROSOFT, ORDERED): (
        "DequantizeWithOrder QOrderedAttention QOrderedGelu QOrderedLayerNormalization "
        "QOrderedLongformerAttention QOrderedMatMul QuantizeWithOrder"
    ),
    (MICROSOFT, VENDOR): "EPContext Snpe",
    (MICROSOFT, SPARSE): (
        "DynamicSparseAttention LongformerAttention PackedAttention "
        "PackedMultiHeadAttention PackedSparseAttentionIndexer PackedSparseAttentionIndexerMerge "
        "RemovePadding RestorePadding SparseAttention SparseAttentionIndexer"
    ),
    (MICROSOFT, SPARSE_DATA): "SparseToDenseMatMul",
    (MICROSOFT, INTERNAL): "MatMulPacked MoEPacked GatherPacked",
    (MICROSOFT, REPLACED): "MatMulFpQ4",
    (MICROSOFT, HARDWARE): "DequantizeBFP GemmFloat8 QuantizeBFP",
    (MICROSOFT, NO_KERNEL): "QLinearReduceMean",
    (MICROSOFT, UNDEFINED): "MaxpoolWithMask",
    (MICROSOFT, NEW): (
        "BranchwiseRMSNorm ConvStateReplay DynamicTimeWarping EngramGate GatedDeltaNet "
        "GatedDeltaNetStateReplay HyperConnectionLowRankMix "
        "HyperConnectionPostMix HyperConnectionPreMix MRotaryEmbedding "
        "Mamba2Verify MatMulBlockQuantizedFp4Weight MatMulBlockQuantizedFp8Weight MatMulNBitsMlp "
        "MatMulNBitsQLoRA MatMulNBitsQkv MoEGroupRouter NGramHashMapping RMSNormRotary "
        "RouterGateUpProj VarlenCausalConvWithState VarlenNGramHashMapping"
    ),
}

REFUSALS: dict[tuple[str, str], str] = {
    (domain, name): reason
    for (domain, reason), names in _BY_REASON.items()
    for name in names.split()
}
