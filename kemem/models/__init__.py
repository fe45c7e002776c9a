"""Models: the unmodified classes of `transformers`, built from a shape or read from the hub or a folder."""

from kemem.models.native import convert
from kemem.models.places import DEVICES, DTYPES, named_device, named_dtype
from kemem.models.reading import branches, commit, described, family, fetch, load, revisions
from kemem.models.shape import FAMILIES, MASKED, Shape, build

__all__ = [
    "DEVICES",
    "DTYPES",
    "FAMILIES",
    "MASKED",
    "Shape",
    "branches",
    "build",
    "commit",
    "convert",
    "described",
    "family",
    "fetch",
    "load",
    "named_device",
    "named_dtype",
    "revisions",
]
