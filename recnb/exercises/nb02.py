"""Exercises of notebook 02: the causal mask, full-softmax loss, and a sampled negative that lies."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from recnb.lessons import Exercise


def causal_mask(length: int) -> Tensor:
    """True where position (row) may look at position (column): itself and earlier."""
    return torch.ones(length, length, dtype=torch.bool).tril()


def check_causal_mask(answer: Callable[[int], Tensor]) -> str | None:
    """Compare with the definition, entry by entry."""
    got = answer(4)
    if not isinstance(got, Tensor) or got.shape != (4, 4):
        return f"expected a (4, 4) tensor for length 4, got {getattr(got, 'shape', type(got).__name__)}"
    got = got.bool()
    expected = torch.tensor([[column <= row for column in range(4)] for row in range(4)])
    if torch.equal(got, expected):
        return None
    if torch.equal(got, expected.T):
        return "rows and columns are swapped: a position would look at the future only"
    if torch.equal(got, ~expected):
        return "it is inverted: True should mean 'may look'"
    if torch.equal(got, expected & ~torch.eye(4, dtype=torch.bool)):
        return "a position may look at itself too: the diagonal is missing"
    if got.all():
        return "every position sees the whole sequence, its own target included: that is the leak"
    return f"for length 4 expected\n{expected.int()}\ngot\n{got.int()}"


def full_softmax_loss(states: Tensor, items: Tensor, target: Tensor, real: Tensor) -> Tensor:
    """Mean cross-entropy of the target among all items, over real positions only."""
    logits = states[real] @ items.T
    return F.cross_entropy(logits, target[real])


def check_full_softmax_loss(answer: Callable[..., Tensor]) -> str | None:
    """Compare with -log softmax written out, on drawn numbers with padding among them."""
    draw = torch.Generator().manual_seed(5)
    states = torch.randn(3, 5, 8, generator=draw)
    items = torch.randn(11, 8, generator=draw)
    target = torch.randint(11, (3, 5), generator=draw)
    real = torch.arange(5)[None] < torch.tensor([5, 2, 3])[:, None]
    score = torch.einsum("btd,id->bti", states, items).double().exp()
    chosen = score.gather(2, target[..., None])[..., 0]
    each = -(chosen / score.sum(-1)).log()
    got = float(answer(states, items, target, real))
    mistakes = {
        "padding counts too: average over real positions only": each.mean(),
        "it is the sum: divide by the number of real positions": each[real].sum(),
        "padding is left out of the sum but still divided by": (each * real).sum() / real.numel(),
        "the sign is turned: a loss falls as the target's probability rises": -each[real].mean(),
    }
    if abs(got - float(each[real].mean())) < 1e-4:
        return None
    for message, value in mistakes.items():
        if abs(got - float(value)) < 1e-4:
            return message
    return f"expected {float(each[real].mean()):.4f} on the drawn example, got {got:.4f}"


def running_window_max(values: Tensor, window: int) -> Tensor:
    """out[t] = max of values[t - window + 1 .. t], what lies before the start counting as 0."""
    padded = F.pad(values, (window - 1, 0))
    return padded.unfold(0, window, 1).amax(1)


def check_running_window_max(answer: Callable[[Tensor, int], Tensor]) -> str | None:
    """Compare with a plain Python loop."""
    values = torch.tensor([9.0, 1.0, 4.0, 1.0, 5.0, 3.0, 2.0, 6.0])
    got = answer(values, 3)
    numbers = values.tolist()
    expected = [max(numbers[max(0, t - 2) : t + 1]) for t in range(8)]
    if not isinstance(got, Tensor) or got.shape != (8,):
        return f"expected one value a position, shape (8,), got {getattr(got, 'shape', type(got).__name__)}"
    if torch.allclose(got, torch.tensor(expected)):
        return None
    ahead = [max(numbers[t : t + 3]) for t in range(8)]
    if torch.allclose(got, torch.tensor(ahead)):
        return "it looks ahead: position t took the maximum of what comes after it"
    if torch.allclose(got, torch.tensor([max(numbers[: t + 1]) for t in range(8)])):
        return "the window never drops an item: it is the maximum of everything so far"
    return f"for {numbers} and window 3 expected {expected}, got {got.tolist()}"


EXERCISES = {
    "causal_mask": Exercise(causal_mask, check_causal_mask, "no position sees what it must predict"),
    "full_softmax_loss": Exercise(
        full_softmax_loss, check_full_softmax_loss, "this is the whole training signal of SASRec here"
    ),
    "running_window_max": Exercise(
        running_window_max, check_running_window_max, "this is how Caser pools all its windows in one pass"
    ),
}
