"""The data of the examples: scikit-learn's handwritten digits, brought to the size that a network expects.

The 1,797 images of 8x8 are real and come inside the scikit-learn package, so nothing is downloaded.
"""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

TRAIN_IMAGES = 1437
_SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """Images `(n, channels, size, size)` and labels `(n,)`, split into training and test."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load(size: int, channels: int) -> Digits:
    """The digits, enlarged bilinearly to `size`, normalised with the training mean and deviation.

    The split is the same at every call: 1,437 images to train and 360 to test.
    """
    raw = load_digits()
    order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    images = torch.tensor(raw.images, dtype=torch.float32)[order].unsqueeze(1)
    labels = torch.tensor(raw.target, dtype=torch.int64)[order]
    images = (images - images[:TRAIN_IMAGES].mean()) / images[:TRAIN_IMAGES].std()
    images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    images = images.expand(-1, channels, -1, -1).contiguous()
    return Digits(images[:TRAIN_IMAGES], labels[:TRAIN_IMAGES], images[TRAIN_IMAGES:], labels[TRAIN_IMAGES:])
