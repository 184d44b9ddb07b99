"""Exercises of notebook 03: splicing vectors into a prompt, the mask of the answer, the share of hybrid steps."""

from __future__ import annotations

import dis
from collections.abc import Callable

import torch
from torch import Tensor

from recnb.lessons import Exercise


def splice(embeds: Tensor, slots: Tensor, vectors: Tensor) -> Tensor:
    """Put vectors (B, S, H) at positions slots (B, S) of embeds (B, T, H); embeds itself stays as it is."""
    filled = embeds.clone()
    row = torch.arange(len(embeds))[:, None]
    filled[row, slots] = vectors
    return filled


def check_splice(answer: Callable[..., Tensor]) -> str | None:
    """Compare with a loop over rows and slots, on drawn numbers."""
    draw = torch.Generator().manual_seed(3)
    embeds, vectors = (torch.randn(*shape, generator=draw) for shape in ((2, 7, 4), (2, 3, 4)))
    slots = torch.tensor([[0, 2, 5], [1, 3, 6]])
    given, learnt = embeds.clone(), vectors.clone().requires_grad_()
    got = answer(given, slots, learnt)
    if not isinstance(got, Tensor) or got.shape != embeds.shape:
        return f"expected a tensor of shape (2, 7, 4), got {getattr(got, 'shape', type(got).__name__)}"
    if not torch.equal(given, embeds):
        return "it changed `embeds` itself, the table's own rows: work on a copy"
    expected, added, turned = embeds.clone(), embeds.clone(), embeds.clone()
    for row in range(2):
        for place, slot in enumerate(slots[row]):
            expected[row, slot] = vectors[row, place]
            added[row, slot] += vectors[row, place]
            turned[row, slot] = vectors[row, 2 - place]
    every, first = embeds.clone(), embeds.clone()
    every[:, slots] = vectors
    first[:, slots[0]] = vectors
    mistakes = {
        "it adds the vectors to what stood there: a slot is replaced": added,
        "the order is turned round: the first vector belongs to the first slot": turned,
        "every row received the slots of all rows: pair each row with its own slots": every,
        "all rows use the slots of the first row": first,
        "nothing was put in": embeds,
    }
    for message, value in mistakes.items():
        if torch.allclose(got, value):
            return message
    if not torch.allclose(got, expected):
        return f"in row 0 positions 0, 2 and 5 should hold the vectors; there stands {got[0, 0].tolist()} at 0"
    if not got.requires_grad:
        return "the numbers are right, but no gradient reaches the vectors: the projector could never learn"
    if any(step.opname == "FOR_ITER" for step in dis.get_instructions(answer)):
        return "the numbers are right, but it loops: one indexed assignment does it for the whole batch"
    return None


def answer_mask(prompt: Tensor, answer: Tensor) -> Tensor:
    """True where the model's output predicts an answer token.

    A row holds ``prompt`` tokens (B,), then its ``answer`` tokens (B,) but for the last, then padding.
    """
    place = torch.arange(int((prompt + answer).max()) - 1)
    start, stop = prompt[:, None] - 1, (prompt + answer)[:, None] - 1
    return (place >= start) & (place < stop)


def check_answer_mask(answer: Callable[[Tensor, Tensor], Tensor]) -> str | None:
    """Compare with the definition, position by position, for two rows of different length."""
    lengths = ([4, 3], [3, 2])
    got = answer(*map(torch.tensor, lengths))
    if not isinstance(got, Tensor) or got.shape != (2, 6):
        shape = getattr(got, "shape", type(got).__name__)
        return f"prompts of 4 and 3 with answers of 3 and 2 make rows of 6: expected shape (2, 6), got {tuple(shape)}"
    got = got.bool()

    def between(start: int, stop: int) -> Tensor:
        """True from P + start up to, but without, P + A + stop."""
        rows = [[p + start <= t < p + a + stop for t in range(6)] for p, a in zip(*lengths, strict=True)]
        return torch.tensor(rows)

    mistakes = {
        "one step late: a position predicts the token after it, so the prompt's last token comes first": between(0, -1),
        "one step early: the first answer token is predicted at the prompt's last position": between(-2, -2),
        "the end of the answer is missing: the model must learn to stop": between(-1, -2),
        "the prompt counts too: only what predicts the answer should": between(-9, -1),
        "padding counts too: stop after the answer's last token": between(-1, 9),
        "it is inverted": ~between(-1, -1),
    }
    if torch.equal(got, between(-1, -1)):
        return None
    for message, value in mistakes.items():
        if torch.equal(got, value):
            return message
    return f"expected\n{between(-1, -1).int()}\ngot\n{got.int()}"


def hybrid_share(step: int, total: int) -> float:
    """The curriculum: probability that a micro-batch is hybrid after ``step`` of ``total`` steps."""
    return step / total


def check_hybrid_share(answer: Callable[[int, int], float]) -> str | None:
    """Compare with p = tau / T over five passes of 200 steps."""
    steps = [0, 100, 250, 500, 900, 1000]
    got = [float(answer(step, 1000)) for step in steps]
    shapes: dict[str, Callable[[float], float]] = {
        "it falls: text should come first, so p begins at 0": lambda x: 1 - x,
        "it starts anew in every pass: count the steps of the whole training": lambda x: (5 * x) % 1,
        "it starts anew in every pass and never passes one fifth, a fault of the published code": lambda x: (
            (5 * x) % 1 / 5
        ),
        "it is a percentage: a probability lies between 0 and 1": lambda x: 100 * x,
        "whole numbers only: `//` rounds down, and p stays 0 until the last step": lambda x: float(x >= 1),
        "it jumps from text to hybrid: the curriculum rises evenly": lambda x: float(x >= 0.4),
    }
    if all(abs(value - step / 1000) < 1e-9 for value, step in zip(got, steps, strict=True)):
        return None
    if len(set(got)) == 1:
        return f"it is always {got[0]:g}, whatever the step"
    for message, shape in shapes.items():
        if all(abs(value - shape(step / 1000)) < 1e-9 for value, step in zip(got, steps, strict=True)):
            return message
    return f"for steps {steps} of 1000 expected {[step / 1000 for step in steps]}, got {got}"


EXERCISES = {
    "splice": Exercise(splice, check_splice, "this one assignment is how a film enters a sentence"),
    "answer_mask": Exercise(answer_mask, check_answer_mask, "it learns to answer, not to repeat the question"),
    "hybrid_share": Exercise(hybrid_share, check_hybrid_share, "on average half of all steps are hybrid"),
}
