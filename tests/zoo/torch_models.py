"""Small models written in plain torch.nn, with random weights. Needs torch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from zoo.export import Export, write

VOCABULARY = 200


class Tagger(nn.Module):
    """Embedding, a recurrent network in both directions, a linear layer a token."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.recurrent = kind(32, 48, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(96, 9)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.recurrent(self.embedding(input_ids))[0])


class Transformer(nn.Module):
    """torch's own encoder and decoder, causal, with a mask of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 64)
        self.model = nn.Transformer(64, 4, 2, 2, 128, batch_first=True)
        self.head = nn.Linear(64, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor, padding: Tensor) -> Tensor:
        length = target.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).triu(1)
        decoded = self.model(
            self.embedding(source),
            self.embedding(target),
            tgt_mask=causal,
            tgt_is_causal=True,  # torch.export cannot trace the look at the mask that finds it out
            src_key_padding_mask=padding == 0,
            memory_key_padding_mask=padding == 0,
        )
        return self.head(decoded)


class TopKHead(nn.Module):
    """The best k of a linear layer, with their softmax and the features they choose."""

    def __init__(self, k: int = 5) -> None:
        super().__init__()
        self.k = k
        self.head = nn.Linear(64, 100)
        self.features = nn.Embedding(100, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, indices = self.head(x).topk(self.k, dim=-1)
        return values.softmax(-1), indices, self.features(indices)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class BasicBlock(nn.Module):
    """The residual block of ResNet-18 (He et al., 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


def resnet18(width: int = 16) -> nn.Module:
    stages: list[nn.Module] = []
    channels = width
    for stage in range(4):
        for block in range(2):
            outputs = width << stage
            stages.append(BasicBlock(channels, outputs, 2 if stage and not block else 1))
            channels = outputs
    return nn.Sequential(
        conv(3, width, 7, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        *stages,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 10),
    )


class SqueezeExcite(nn.Module):
    """A gate a channel from the mean of all positions (Hu et al., 2017)."""

    def __init__(
        self, channels: int, squeezed: int, activation: nn.Module, gate: nn.Module
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            activation,
            nn.Conv2d(squeezed, channels, 1),
            gate,
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.layers(x)


class InvertedResidual(nn.Module):
    """Expand, depthwise, gate, project: the block of MobileNetV3 and of EfficientNet."""

    def __init__(
        self,
        inputs: int,
        expanded: int,
        outputs: int,
        kernel: int,
        stride: int,
        act: type[nn.Module],
        gate: nn.Module | None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if expanded != inputs:
            layers += [conv(inputs, expanded, 1), act()]
        layers += [conv(expanded, expanded, kernel, stride, expanded), act()]
        if gate is not None:
            layers += [gate]
        self.layers = nn.Sequential(*layers, conv(expanded, outputs, 1))
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


def mobilenet_v3() -> nn.Module:
    """MobileNetV3 small (Howard et al., 2019), its last stages left out."""

    def block(i: int, e: int, o: int, k: int, s: int, gated: bool, hard: bool) -> nn.Module:
        gate = SqueezeExcite(e, e // 4, nn.ReLU(), nn.Hardsigmoid()) if gated else None
        return InvertedResidual(i, e, o, k, s, nn.Hardswish if hard else nn.ReLU, gate)

    return nn.Sequential(
        conv(3, 16, 3, 2),
        nn.Hardswish(),
        block(16, 16, 16, 3, 2, True, False),
        block(16, 72, 24, 3, 2, False, False),
        block(24, 88, 24, 3, 1, False, False),
        block(24, 96, 40, 5, 2, True, True),
        block(40, 240, 40, 5, 1, True, True),
        conv(40, 240, 1),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(240, 128),
        nn.Hardswish(),
        nn.Dropout(0.2),
        nn.Linear(128, 10),
    )


def efficientnet() -> nn.Module:
    """EfficientNet-B0 (Tan and Le, 2019), its last stages left out."""

    def block(i: int, ratio: int, o: int, k: int, s: int) -> nn.Module:
        e = i * ratio
        gate = SqueezeExcite(e, max(1, i // 4), nn.SiLU(), nn.Sigmoid())
        return InvertedResidual(i, e, o, k, s, nn.SiLU, gate)

    return nn.Sequential(
        conv(3, 32, 3, 2),
        nn.SiLU(),
        block(32, 1, 16, 3, 1),
        block(16, 6, 24, 3, 2),
        block(24, 6, 24, 3, 1),
        block(24, 6, 40, 5, 2),
        block(40, 6, 40, 5, 1),
        conv(40, 320, 1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(320, 10),
    )


class ConvNeXtBlock(nn.Module):
    """Depthwise 7 x 7, LayerNorm over channels last, MLP, scale (Liu et al., 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.scale = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        return x + (self.scale * self.mlp(self.norm(y))).permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [batch, channels, height, width]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 24, 4, 4),
        ChannelNorm(24),
        ConvNeXtBlock(24),
        ChannelNorm(24),
        nn.Conv2d(24, 48, 2, 2),
        ConvNeXtBlock(48),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(48),
        nn.Linear(48, 10),
    )


class UNet(nn.Module):
    """Two levels down and up: GroupNorm, bilinear and transposed upsampling, a time embedding."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w = width
        self.time = nn.Sequential(nn.Linear(w, 2 * w), nn.SiLU(), nn.Linear(2 * w, 2 * w))
        self.begin = self.block(3, w)
        self.down1, self.down2 = self.block(w, 2 * w), self.block(2 * w, 4 * w)
        self.attention = nn.MultiheadAttention(4 * w, 4, batch_first=True)
        self.up2 = nn.ConvTranspose2d(4 * w, 2 * w, 2, 2)
        self.up1 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.merge2, self.merge1 = self.block(4 * w, 2 * w), self.block(3 * w, w)
        self.end = nn.Conv2d(w, 3, 1)
        frequencies = torch.exp(-torch.arange(w // 2) * 0.5)
        self.register_buffer("frequencies", frequencies)

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.SiLU()
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        angles = time[:, None].float() * self.frequencies
        step = self.time(torch.cat([angles.sin(), angles.cos()], -1))[:, :, None, None]
        begin = self.begin(x)
        first = self.down1(nn.functional.max_pool2d(begin, 2)) + step
        second = self.down2(nn.functional.avg_pool2d(first, 2))
        tokens = second.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        second = tokens.transpose(1, 2).reshape(second.shape)
        first = self.merge2(torch.cat([first, self.up2(second)], 1))
        return self.end(self.merge1(torch.cat([begin, self.up1(first)], 1)))


def image_net(module: nn.Module) -> Export:
    for child in module.modules():  # statistics as after training, so that numbers stay tame
        if isinstance(child, nn.BatchNorm2d):
            nn.init.uniform_(child.running_mean, -0.2, 0.2)
            nn.init.uniform_(child.running_var, 0.2, 0.6)
    axes = {0: "batch", 2: "height", 3: "width"}
    return Export(module, {"image": (torch.randn(2, 3, 64, 96), axes)}, {"logits": {0: "batch"}})


def tagger(kind: type[nn.RNNBase]) -> Export:
    axes = {0: "batch", 1: "seq"}
    ids = torch.randint(0, VOCABULARY, (2, 7))
    return Export(Tagger(kind), {"input_ids": (ids, axes)}, {"logits": axes})


def transformer() -> Export:
    source, target = {0: "batch", 1: "source_len"}, {0: "batch", 1: "target_len"}
    inputs = {
        "source": (torch.randint(0, VOCABULARY, (2, 9)), source),
        "target": (torch.randint(0, VOCABULARY, (2, 6)), target),
        "padding": (torch.ones(2, 9, dtype=torch.int64), source),
    }
    return Export(Transformer(), inputs, {"logits": target})


def topk_head() -> Export:
    axes = {0: "batch"}
    names = ("weights", "indices", "features")
    return Export(TopKHead(), {"x": (torch.randn(3, 64), axes)}, dict.fromkeys(names, axes))


def unet() -> Export:
    axes = {0: "batch", 2: "height", 3: "width"}
    inputs = {
        "x": (torch.randn(2, 3, 32, 48), axes),
        "time": (torch.tensor([3, 7]), {0: "batch"}),
    }
    return Export(UNet(), inputs, {"noise": axes})


MODELS = {
    "lstm": lambda: tagger(nn.LSTM),
    "gru": lambda: tagger(nn.GRU),
    "rnn": lambda: tagger(nn.RNN),
    "transformer": transformer,
    "topk_head": topk_head,
    "unet": unet,
    "resnet18": lambda: image_net(resnet18()),
    "mobilenet_v3": lambda: image_net(mobilenet_v3()),
    "efficientnet": lambda: image_net(efficientnet()),
    "convnext": lambda: image_net(convnext()),
}


def make(function: str, variant: str, path: Path) -> None:
    """Write the model MODELS[function] by the exporter `variant`."""
    torch.manual_seed(0)
    write(MODELS[function](), variant, path)
