"""Models: the unmodified classes of `transformers`, built from a shape or read from the hub or a folder."""

from kemem.models.places import DEVICES, DTYPES, named_device, named_dtype
from kemem.models.reading import described, family, load, revisions
from kemem.models.shape import FAMILIES, MASKED, Shape, build

__all__ = [
    "DEVICES",
    "DTYPES",
    "FAMILIES",
    "MASKED",
    "Shape",
    "build",
    "described",
    "family",
    "load",
    "named_device",
    "named_dtype",
    "revisions",
]
