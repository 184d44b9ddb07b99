"""Next-item losses: softmax over the whole catalogue, and the original one sampled negative."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def softmax_loss(states: Tensor, items: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """Mean of -log softmax(y)[target] over the catalogue, with scores y = states @ items.T + bias.

    Args:
        states: (M, d).
        items: (n_items, d).
        bias: (n_items,) or None.
        target: (M,) item ids.
    """
    return F.cross_entropy(F.linear(states, items, bias), target)


def sampled_loss(states: Tensor, items: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """Mean of -log sigma(y_pos) - log(1 - sigma(y_neg)) with one uniform negative that is not the target.

    Shapes as in `softmax_loss`. This is the loss of the original SASRec, and of the SASRec that LLaRA and DreamRec use.
    """
    negative = torch.randint(len(items) - 1, target.shape, device=target.device)
    negative += negative >= target
    logits = torch.stack([(states * items[ids]).sum(-1) for ids in (target, negative)])
    if bias is not None:
        logits = logits + torch.stack([bias[target], bias[negative]])
    return (F.softplus(-logits[0]) + F.softplus(logits[1])).mean()


LOSSES = {"ce": softmax_loss, "bce": sampled_loss}
