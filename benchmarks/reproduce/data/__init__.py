"""The four image sets of the paper, read from the files in which they are handed out."""

from pathlib import Path

from . import cifar, svhn, tiny_imagenet
from .kinds import BadData, ImageSet, Split

__all__ = ["NAMES", "BadData", "ImageSet", "Split", "read"]

CLASSES = {"cifar10": 10, "cifar100": 100, "svhn": 10, "tiny-imagenet": 200}
NAMES = tuple(CLASSES)
# Mean and standard deviation of the pixel values 0..255, as in the load_data.py of the paper's
# authors (https://github.com/vikasverma1077/manifold_mixup).
MOMENTS = {
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
    "svhn": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "tiny-imagenet": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
}


def read(name: str, folder: Path) -> ImageSet:
    """The set `name` from the files or archives in `folder`, or in its usual subfolder."""
    classes = CLASSES[name]
    if name == "svhn":
        train, test = svhn.read(folder, classes)
    elif name == "tiny-imagenet":
        train, test = tiny_imagenet.read(folder, classes)
    else:
        train, test = cifar.read(name, folder, classes)
    (r, g, b), (sr, sg, sb) = MOMENTS[name]
    mean, std = (r / 255, g / 255, b / 255), (sr / 255, sg / 255, sb / 255)
    return ImageSet(name, train, test, classes, mean, std)
