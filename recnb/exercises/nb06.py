"""Exercises of notebook 06: noising an item, a chain of affine steps as one, and a step of DDIM."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recnb.lessons import Exercise


def noised(x0: Tensor, kept: float, noise: Tensor) -> Tensor:
    """x_t: the share ``kept`` of the signal's power, the rest noise."""
    return kept**0.5 * x0 + (1 - kept) ** 0.5 * noise


def check_noised(answer: Callable[..., Tensor]) -> str | None:
    """Compare with the definition, and name the usual slips."""
    draw = torch.Generator().manual_seed(6)
    x0, noise = (torch.randn(5, 3, generator=draw) for _ in range(2))
    kept = 0.36
    mistakes = {
        "without square roots the variances do not add up to 1": kept * x0 + (1 - kept) * noise,
        "signal and noise have changed places": (1 - kept) ** 0.5 * x0 + kept**0.5 * noise,
        "the noise comes at full strength: its variance should be 1 - kept": kept**0.5 * x0 + noise,
        "the signal is not damped": x0 + (1 - kept) ** 0.5 * noise,
    }
    got = answer(x0, kept, noise)
    expected = noised(x0, kept, noise)
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        return f"expected a tensor of shape (5, 3), got {getattr(got, 'shape', type(got).__name__)}"
    if torch.allclose(got, expected, atol=1e-5):
        return None
    for message, wrong in mistakes.items():
        if torch.allclose(got, wrong, atol=1e-5):
            return message
    return f"first row: expected {expected[0].tolist()}, got {got[0].tolist()}"


def compose(steps: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The one map x -> M x + m that does what all steps x -> G x + c do, in their order."""
    matrix, shift = torch.eye(len(steps[0][1])), torch.zeros(len(steps[0][1]))
    for turn, push in steps:
        matrix, shift = turn @ matrix, turn @ shift + push
    return matrix, shift


def check_compose(answer: Callable[..., tuple[Tensor, Tensor]]) -> str | None:
    """Compare with doing the steps one after the other on a drawn vector."""
    draw = torch.Generator().manual_seed(7)
    steps = [(torch.randn(3, 3, generator=draw), torch.randn(3, generator=draw)) for _ in range(4)]
    matrix, shift = compose(steps)
    pushes = torch.stack([push for _, push in steps]).sum(0)
    got = answer(steps)
    if not isinstance(got, tuple) or len(got) != 2:
        return "return two things: the matrix and the shift"
    if torch.allclose(got[0], matrix, atol=1e-4) and torch.allclose(got[1], shift, atol=1e-4):
        return None
    backwards = compose(steps[::-1])
    if torch.allclose(got[0], backwards[0], atol=1e-4):
        return "the steps are taken in reverse order: the first step must be applied first"
    if torch.allclose(got[0], matrix, atol=1e-4) and torch.allclose(got[1], pushes, atol=1e-4):
        return "later steps also turn what earlier steps pushed: turn the old shift before you add the new one"
    x = torch.ones(3)
    for turn, push in steps:
        x = turn @ x + push
    return f"four steps take (1, 1, 1) to {x.tolist()}; yours to {(got[0] @ torch.ones(3) + got[1]).tolist()}"


def ddim_step(x: Tensor, x0: Tensor, kept: float, then: float) -> Tensor:
    """From x_t with share ``kept`` to an earlier step with share ``then``, keeping the noise that x holds."""
    noise = (x - kept**0.5 * x0) / (1 - kept) ** 0.5
    return then**0.5 * x0 + (1 - then) ** 0.5 * noise


def check_ddim_step(answer: Callable[..., Tensor]) -> str | None:
    """Noise an item with known noise: the step must land where the same noise would have put it."""
    draw = torch.Generator().manual_seed(8)
    x0, noise = (torch.randn(4, 3, generator=draw) for _ in range(2))
    kept, then = 0.2, 0.7
    x = noised(x0, kept, noise)
    expected = noised(x0, then, noise)
    got = answer(x, x0, kept, then)
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        return f"expected a tensor of shape (4, 3), got {getattr(got, 'shape', type(got).__name__)}"
    if torch.allclose(got, expected, atol=1e-4):
        return None
    if torch.allclose(got, x0, atol=1e-4):
        return "it jumps to the predicted item at once: that is right only when `then` is 1"
    if torch.allclose(got, noised(x0, then, x), atol=1e-4):
        return "x itself is not noise: first take out the signal, then divide by the square root of 1 - kept"
    if torch.allclose(got, noised(x0, then, x - kept**0.5 * x0), atol=1e-4):
        return "what is left of x has variance 1 - kept, not 1: divide by its square root"
    if not torch.allclose(answer(x, x0, kept, then), got):
        return "it draws new noise: DDIM keeps the noise that is already there"
    return f"first row: expected {expected[0].tolist()}, got {got[0].tolist()}"


EXERCISES = {
    "noised": Exercise(noised, check_noised, "signal and noise always share a variance of 1"),
    "compose": Exercise(compose, check_compose, "this is all that five hundred steps of the published denoiser do"),
    "ddim_step": Exercise(ddim_step, check_ddim_step, "ten such steps stand for a thousand"),
}
