"""What LLaRA and BIGRec share as modules: a frozen language model of which LoRA alone is trained and kept."""

from __future__ import annotations

from typing import Self

from torch import nn

from recnb.llm import LanguageModel


class Tuned(nn.Module):
    """Only LoRA is in this module's state, as ``lora``; the frozen weights stay outside.

    Args:
        lm: with LoRA injected (`llm.add_lora`).
    """

    def __init__(self, lm: LanguageModel) -> None:
        super().__init__()
        self.lm = lm  # no Module: out of this one's state
        tuned = {name: value for name, value in lm.model.named_parameters() if value.requires_grad}
        self.lora = nn.ParameterDict({name.replace(".", "/"): value for name, value in tuned.items()})

    def train(self, mode: bool = True) -> Self:
        """Switch dropout, in the language model too."""
        self.lm.model.train(mode)
        return super().train(mode)
