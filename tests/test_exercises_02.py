"""Notebook 02's exercises: their stubs and wrong answers, and right ones written otherwise."""

import torch
import torch.nn.functional as F

from recnb.exercises.nb02 import EXERCISES


def stub_causal_mask(length):
    """True where position (row) may look at position (column)."""
    ...


def stub_full_softmax_loss(states, items, target, real):
    """Mean cross-entropy among all items, over real positions."""
    ...


def stub_running_window_max(values, window):
    """out[t] = max of values[t - window + 1 .. t]."""
    ...


STUBS = {
    "causal_mask": stub_causal_mask,
    "full_softmax_loss": stub_full_softmax_loss,
    "running_window_max": stub_running_window_max,
}


def cross_entropy(states, items, target, real, **how):
    return F.cross_entropy((states[real] @ items.T), target[real], **how)


def over_all_places(states, items, target, real):
    return F.cross_entropy((states @ items.T).flatten(0, 1), target.flatten())


def window_ahead(values, window):
    return F.pad(values, (0, window - 1)).unfold(0, window, 1).amax(1)


WRONG = [
    ("causal_mask", lambda n: torch.ones(n, n).triu(), "rows and columns are swapped"),
    ("causal_mask", lambda n: torch.ones(n, n).triu(1), "inverted"),
    ("causal_mask", lambda n: torch.ones(n, n).tril(-1), "diagonal is missing"),
    ("causal_mask", lambda n: torch.ones(n, n), "its own target included"),
    ("causal_mask", lambda n: torch.ones(n), "expected a (4, 4) tensor"),
    ("full_softmax_loss", over_all_places, "padding counts too"),
    ("full_softmax_loss", lambda *given: cross_entropy(*given, reduction="sum"), "it is the sum"),
    (
        "full_softmax_loss",
        lambda s, i, t, real: cross_entropy(s, i, t, real, reduction="sum") / real.numel(),
        "still divided by",
    ),
    ("full_softmax_loss", lambda *given: -cross_entropy(*given), "the sign is turned"),
    ("running_window_max", window_ahead, "it looks ahead"),
    ("running_window_max", lambda values, window: values.cummax(0).values, "never drops an item"),
    ("running_window_max", lambda values, window: values.max(), "one value a position"),
]


def test_right_answers_written_otherwise_pass():
    def by_comparison(length):
        place = torch.arange(length)
        return place[:, None] >= place[None]

    def by_loop(values, window):
        return torch.stack([values[max(0, t - window + 1) : t + 1].max() for t in range(len(values))])

    def by_logsumexp(states, items, target, real):
        logits = states @ items.T
        own = logits.gather(2, target[..., None])[..., 0]
        return (logits.logsumexp(-1) - own)[real].mean()

    assert EXERCISES["causal_mask"].check(by_comparison) is None
    assert EXERCISES["running_window_max"].check(by_loop) is None
    assert EXERCISES["full_softmax_loss"].check(by_logsumexp) is None
