"""The way of a model through the passes, as a column that reads from top to bottom."""

from __future__ import annotations

TIDY = "func.func(canonicalize,cse)"

# First: what reads caches then reads them as they are stored.
CACHES = ("quantize-caches",)

# While the front end's loops are as it has made them.
RECOGNIZE = ("convert-selective-scan",)

# Before norms are taken apart: their gains go into the products behind them.
ROTATE = ("fuse-bias", "rotate-stream", "sort-channels")

# What a target has no kernels for is loops like others; the rest stays one op.
DECOMPOSE = ("decompose-norm",)

# The front end knows all sizes; what is left is to fuse.
SIMPLIFY = (
    TIDY,
    "insert-fake-quantize",  # while a loop is one operator of the model
    "convert-batch-matmul",  # before fusion turns it into loops
    "resolve-dims",
    "func.func(int-range-optimizations,canonicalize,cse)",
    "simplify-broadcasts",
    "func.func(linalg-fuse-elementwise-ops,canonicalize,cse)",
    "fill-constants",
    "resolve-dims",
    "func.func(resolve-shaped-type-result-dims,linalg-fuse-elementwise-ops,canonicalize,cse)",
    "share-heads",
    TIDY,
)

# The recipe gives formats, the cost model strategies.
QUANTIZE = (
    "fuse-caches",  # after products know their heads
    TIDY,
    "balance-channels",
    "quantize",
    "integer-only",
    TIDY,
    "read-codes",
    "direct-conv",
    "direct-code-conv",
    "decompose-conv",
    "resolve-dims",
    "func.func(resolve-shaped-type-result-dims,linalg-fuse-elementwise-ops,canonicalize,cse)",
    "pack-layouts",
)
# After the last fusion of loops.
CPU_LOOPS = ("scale-weights", "split-reductions", "convert-max-pool", "collapse-reductions")
EPILOGUES = (
    "fuse-epilogues",  # after products have their kernels
    "gate-planes",
    "decompose-gather",
    TIDY,  # packs of one activation for several matmuls become one
)

# Tensors become buffers,
LOWER = (
    "resolve-dims",
    "decompose-caches",
    "decompose-hadamard",
    "decompose-permute-channels",
    "append-caches",
    "decompose-update",
    "decompose-concat",
    TIDY,
    "merge-products",
    "gate-products",
    "lower-abq",
    TIDY,
    "separate-fills",  # after the last cse, which would merge them again
    "func.func(linalg-generalize-named-ops)",
    "one-shot-bufferize{bufferize-function-boundaries=1 "
    "function-boundary-type-conversion=identity-layout-map buffer-alignment=64 "
    "allow-return-allocs-from-loops=1}",
    "func.func(canonicalize)",
    "forward-copies",
    "func.func(linalg-generalize-named-ops)",
)
CPU_STEPS = ("store-copies", "version-loops")  # while loops show what they touch
CHECKS = ("guard-indices", "guard-divisions", "check-sizes")

# and loops grid functions.
CPU_KERNELS = (
    *CPU_STEPS,
    *CHECKS,
    "merge-rows",
    "outline-kernels",
    TIDY,
    "outline-sequences",
    TIDY,
    "insert-frees",
)
GPU_KERNELS = (
    *CHECKS,
    "write-appends",
    "merge-loops",
    "outline-gpu-kernels",
    "outline-serial-code",
    TIDY,
    "externalize-constants",
    "insert-frees",
)


# Targets have kernels for what would be loops, which would be fused with others. Running sums are
# loops on a CPU.
CONVERSIONS = ("convert-arg-extreme",)
GPU_CONVERSIONS = ("convert-scan",)
GPU_FUSIONS = (
    "fuse-attention",
    TIDY,
    "share-heads",  # of keys that were also transposed or scaled
    "fuse-norm",
    TIDY,
    "fuse-concat",  # after attention, which would not know its heads again
    "func.func(canonicalize,cse,linalg-fuse-elementwise-ops,canonicalize,cse)",
    "fold-transposes",
    TIDY,
)
# Calibration, which looks at models before this, knows the products and the softmax.
CPU_FUSIONS = (
    "fuse-attention",
    TIDY,
    "share-heads",
    "sink-transposes",  # a GPU's convolutions have channels last themselves
    "func.func(canonicalize,cse,linalg-fuse-elementwise-ops,canonicalize,cse)",
    "join-parts",
)
PACK_FUSIONS = ("fuse-norm-pack", "fuse-pack", "fuse-attention-pack")
# Of loops that are nobody's epilogues.
CPU_IMAGES = ("split-invariants", "collapse-images")


def stages(on_device: bool) -> dict[str, tuple[str, ...]]:
    """The passes by stage; `on_device`: for a GPU."""
    kernels = GPU_KERNELS if on_device else CPU_KERNELS
    simplify = (*GPU_CONVERSIONS, *SIMPLIFY, *GPU_FUSIONS) if on_device else SIMPLIFY
    first = (*RECOGNIZE, *CACHES, *ROTATE, *DECOMPOSE, *CONVERSIONS)
    quantize = (
        (*QUANTIZE, *EPILOGUES) if on_device else (*CPU_FUSIONS, *QUANTIZE, *CPU_LOOPS, *EPILOGUES)
    )
    images = () if on_device else CPU_IMAGES
    return {
        "simplified": (*first, *simplify),
        "quantized": (*quantize, *PACK_FUSIONS, *images),
        "host": (*LOWER, *kernels),
    }
