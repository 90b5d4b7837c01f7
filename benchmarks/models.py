"""Models to mix. ``by_hand`` is Manifold Mixup written into the forward."""

import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


def naive(h, mix):
    perm, lam = mix
    if lam.ndim:
        lam = lam.reshape(-1, *[1] * (h.ndim - 1))
    wide = h.float()  # so that half precision is rounded only once
    return (lam * wide + (1 - lam) * wide[perm]).to(h.dtype)


class MLP(nn.Sequential):
    layers = ("", "0", "1", "3")

    def __init__(self, width=16, classes=5):
        super().__init__(
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, classes),
        )

    def forward(self, x):  # model.compile() would skip the forward of nn.Sequential
        return self.by_hand(x, None, None)

    def by_hand(self, x, layer, mix):
        if layer == "":
            x = naive(x, mix)
        for name, step in self.named_children():
            x = step(x)
            if layer == name:
                x = naive(x, mix)
        return x


class PreActBlock(nn.Module):
    """Two BN-ReLU-conv layers and a skip (He et al., Identity mappings, ECCV 2016)."""

    def __init__(self, inner, outer, stride, norm=nn.BatchNorm2d, dropout=0.0):
        super().__init__()
        self.bn1, self.bn2 = norm(inner), norm(outer)
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.shortcut = None
        if stride != 1 or inner != outer:
            self.shortcut = nn.Conv2d(inner, outer, 1, stride, bias=False)
        self.dropout = dropout

    def forward(self, x):
        out = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        out = F.relu(self.bn2(self.conv1(out)))
        if self.dropout:
            out = F.dropout(out, self.dropout, self.training)
        return self.conv2(out) + skip


class PreActResNet(nn.Module):
    """Stages of blocks, one for each of `depths`, each twice as wide as the one before.

    `stride` is that of the first convolution, which has `stem` channels (default: `width`).
    """

    layers = ("", "layer1", "layer2")

    def __init__(self, depths, width, classes, stem=None, stride=1, **options):
        super().__init__()
        inner = stem or width
        self.conv1 = nn.Conv2d(3, inner, 3, stride, 1, bias=False)
        self.stages = tuple(f"layer{number}" for number in range(1, len(depths) + 1))
        for stage, (name, depth) in enumerate(zip(self.stages, depths, strict=True)):
            outer = width << stage
            blocks = [PreActBlock(inner, outer, 1 if stage == 0 else 2, **options)]
            blocks += [PreActBlock(outer, outer, 1, **options) for _ in range(depth - 1)]
            self.add_module(name, nn.Sequential(*blocks))
            inner = outer
        self.bn = options.get("norm", nn.BatchNorm2d)(inner)
        self.linear = nn.Linear(inner, classes)

    def forward(self, x):
        return self.by_hand(x, None, None)

    def by_hand(self, x, layer, mix):
        if layer == "":
            x = naive(x, mix)
        x = self.conv1(x)
        for name in self.stages:
            x = getattr(self, name)(x)
            if layer == name:
                x = naive(x, mix)
        x = F.relu(self.bn(x))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class PreActResNet18(PreActResNet):
    """The paper's network for CIFAR, 11.2 million parameters at width 64."""

    def __init__(self, width=64, classes=10):
        super().__init__((2, 2, 2, 2), width, classes)


class EncoderBlock(nn.Module):
    """Returns (hidden, {"attention": ..., "length": int}), as text encoders do."""

    def __init__(self, width):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, h):
        a, weights = self.attention(h, h, h)
        h = self.norm1(h + a)
        return self.norm2(h + self.mlp(h)), {"attention": weights, "length": h.shape[1]}


class Encoder(nn.Module):
    layers = ("embed", "blocks.0", "blocks.1")

    def __init__(self, width=8, classes=4, checkpointing=None):
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.blocks = nn.ModuleList(EncoderBlock(width) for _ in range(3))
        self.head = nn.Linear(width, classes)
        self.checkpointing = checkpointing  # None, or the value of use_reentrant

    def forward(self, tokens):
        return self.by_hand(tokens, None, None)

    def by_hand(self, tokens, layer, mix):
        h = self.embed(tokens)
        if layer == "embed":
            h = naive(h, mix)
        attention = 0
        for k, block in enumerate(self.blocks):
            if self.checkpointing is None:
                h, more = block(h)
            else:
                h, more = checkpoint(block, h, use_reentrant=self.checkpointing)
            weights = more["attention"]
            if layer == f"blocks.{k}":
                h, weights = naive(h, mix), naive(weights, mix)
            attention = attention + weights.mean()
        return self.head(h.mean(1)) + attention


class SmallCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2)
            )
            for i, o in ((1, 32), (32, 64))
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    def forward(self, x, mix=None, layer=-1):
        if mix is not None and layer == 0:
            x = mix(x)
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            if mix is not None and layer == number:
                x = mix(x)  # in place is safe too: max pooling saves indices, not its output
        return self.head(x)
