"""A pytest plugin: what tests ask of the CPU or of any device goes to the one beside the CPU."""

import sys

import torch

from card import NAME


def pytest_collection_finish(
    session,
):  # not before: jaxtyping's plugin wants to be there when kemem is imported
    from kemem import cli, models

    named = models.named_device

    def elsewhere(name: str) -> torch.device:
        return torch.device(NAME, 0) if name in ("cpu", "auto") else named(name)

    assert cli.main
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("kemem") and vars(module).get("named_device") is named:
            module.named_device = elsewhere
