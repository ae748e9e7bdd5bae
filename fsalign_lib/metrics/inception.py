"""Build the Inception-v3 whose pooled features FID is defined on, for pytorch-fid's published weights.

FID's network is the TensorFlow graph of 2015-12-05, and not the Inception-v3 of today's model collections: its average
pools leave the padding out of the mean, the last block pools by the maximum, and its classifier has 1008 classes. The
packages that have it need torchvision, whose release must fit torch's; this one needs torch alone. Parameters have the
names of torchvision's `Inception3`, as in the file.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsalign_lib.models.hub import Download, Hub
from fsalign_lib.models.tensor_files import fill, read_tensors

WEIGHTS = Download(
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "pt_inception-2015-12-05-6726825d.pth",
)
SIZE, FEATURES = 299, 2048
UNUSED = ("fc.", "AuxLogits.")  # classifiers

Kernel = int | tuple[int, int]
Step = tuple[int, Kernel] | tuple[int, Kernel, int]  # channels, kernel, stride


class Conv(nn.Module):
    """Convolve, normalise by batch, apply ReLU; padding keeps the size unless it strides or is asked not to."""

    def __init__(self, channels: int, out: int, kernel: Kernel, stride: int = 1, padded: bool = True):
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if padded and stride == 1 else 0
        self.conv = nn.Conv2d(channels, out, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Join branches by channel: chains of convolutions, and one that begins with a pool.

    Args:
        branches: name -> its chain. A list in it, at the end, is a fork: its convolutions read the same input. In a
            chain of several, the i-th is called <name>_<i>, and the parts of a fork <name>_<i>a, <name>_<i>b.
        pool: "average", "max", or "halve", a max pool of stride 2 that no convolution follows.
        pooled: channels of the convolution behind the pool.
    """

    def __init__(self, channels: int, branches: dict[str, list[Step | list[Step]]], pool: str, pooled: int = 0):
        super().__init__()
        self.pool, self.chains, self.out = pool, [], pooled or channels
        for name, chain in branches.items():
            width, chained = channels, []
            for i, step in enumerate(chain, 1):
                label = f"{name}_{i}" if len(chain) > 1 else name
                parts = dict(zip("ab", step, strict=True)) if isinstance(step, list) else {"": step}
                for letter, part in parts.items():
                    self.add_module(label + letter, Conv(width, *part))
                chained.append([label + letter for letter in parts])
                width = sum(part[0] for part in parts.values())
            self.chains.append(chained)
            self.out += width
        if pooled:
            self.branch_pool = Conv(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for chain in self.chains:
            y = x
            for names in chain:
                y = torch.cat([self.get_submodule(name)(y) for name in names], 1)
            outputs.append(y)
        if self.pool == "halve":
            return torch.cat([*outputs, F.max_pool2d(x, 3, 2)], 1)
        if self.pool == "average":
            pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        else:
            pooled = F.max_pool2d(x, 3, 1, 1)
        return torch.cat([*outputs, self.branch_pool(pooled)], 1)


def _wide(channels: int, pooled: int) -> Block:
    """Build a block at 35 x 35."""
    return Block(
        channels,
        {
            "branch1x1": [(64, 1)],
            "branch5x5": [(48, 1), (64, 5)],
            "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
        },
        "average",
        pooled,
    )


def _crossed(c: int) -> Block:
    """Build a block at 17 x 17: each 7x7 convolution is a row and a column."""
    row, column = (1, 7), (7, 1)
    return Block(
        768,
        {
            "branch1x1": [(192, 1)],
            "branch7x7": [(c, 1), (c, row), (192, column)],
            "branch7x7dbl": [(c, 1), (c, column), (c, row), (c, column), (192, row)],
        },
        "average",
        192,
    )


def _deep(channels: int, pool: str) -> Block:
    """Build a block at 8 x 8: chains end in a row and a column side by side."""
    fork = [(384, (1, 3)), (384, (3, 1))]
    return Block(
        channels,
        {
            "branch1x1": [(320, 1)],
            "branch3x3": [(384, 1), fork],
            "branch3x3dbl": [(448, 1), (384, 3), fork],
        },
        pool,
        192,
    )


class InceptionV3(nn.Module):
    """Map pictures (B, 3, H, W) in [0, 1] to FID's features (B, 2048)."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, padded=False)
        self.Mixed_5b = _wide(192, 32)
        self.Mixed_5c = _wide(256, 64)
        self.Mixed_5d = _wide(288, 64)
        halved = {"branch3x3": [(384, 3, 2)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3, 2)]}
        self.Mixed_6a = Block(288, halved, "halve")
        self.Mixed_6b = _crossed(128)
        self.Mixed_6c = _crossed(160)
        self.Mixed_6d = _crossed(160)
        self.Mixed_6e = _crossed(192)
        halved = {
            "branch3x3": [(192, 1), (320, 3, 2)],
            "branch7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)],
        }
        self.Mixed_7a = Block(768, halved, "halve")
        self.Mixed_7b = _deep(1280, "average")
        self.Mixed_7c = _deep(2048, "max")  # a slip of the published graph, and part of FID's definition since
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Stretch pictures of any size to 299 x 299 without antialiasing, as pytorch-fid does, and return features."""
        x = 2 * F.interpolate(images, (SIZE, SIZE), mode="bilinear", align_corners=False) - 1
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, 2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean((2, 3))


def load_inception(hub: str | Path | None = None) -> InceptionV3:
    """Load FID's network with the published weights: from torch.hub's cache, which a network fills, or from
     <hub>/pt_inception-2015-12-05-6726825d.pth.

    Args:
        hub: a folder of downloads; None: the one that FSALIGN_HUB names, if any.

    Raises:
        FileNotFoundError: the file is missing and cannot be fetched; the message says how to get it.
        ValueError: it is another file.
    """
    path = Hub.of("metric 'fid'", hub).download(WEIGHTS)
    return from_state(read_tensors(path), path)


def from_state(state: dict[str, Tensor], source: Path) -> InceptionV3:
    """Load the network with the tensors of a file; older files have no counter in their batch normalisations."""
    network = InceptionV3()
    counters = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
    kept = {k: v for k, v in state.items() if not k.startswith(UNUSED)}
    return fill(network, counters | kept, source).eval().requires_grad_(False)
