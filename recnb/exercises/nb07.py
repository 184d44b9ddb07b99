"""Exercises of notebook 07: aligning states, what a film adds, and blurring a word to a given cosine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recnb.lessons import Exercise


def align(states: Tensor, length: int) -> Tensor:
    """States (L, d) of which the first ``length`` are real, moved to the end; zeros before them."""
    moved = torch.zeros_like(states)
    moved[len(states) - length :] = states[:length]
    return moved


def check_align(answer: Callable[..., Tensor]) -> str | None:
    """Rows of known numbers, some of them padding that must not survive."""
    states = torch.arange(1.0, 11.0).view(5, 2)
    for length in (3, 5, 1):
        kept, expected, got = states.clone(), align(states, length), answer(states.clone(), length)
        if not isinstance(got, Tensor) or got.shape != expected.shape:
            return f"expected a tensor of shape (5, 2), got {getattr(got, 'shape', type(got).__name__)}"
        if torch.equal(got, expected):
            continue
        if torch.equal(got, states.roll(len(states) - length, 0)):
            return "padding was carried to the front: it must be zero there"
        if torch.equal(got, expected.flip(0)) or torch.equal(got[-length:], kept[:length].flip(0)):
            return "the order has turned round: the latest state belongs in the last row"
        if torch.equal(got[:length], kept[:length]):
            return "the states still stand at the beginning"
        return (
            f"with {length} of 5 real, expected {expected[:, 0].tolist()} in the first column, got {got[:, 0].tolist()}"
        )
    return None


def added(encode: Callable[[list[int]], Tensor], history: list[int], place: int) -> Tensor:
    """Pooled state of the whole history, minus that of the history without the film at ``place``."""
    rest = [item for step, item in enumerate(history) if step != place]
    return encode(list(history)) - encode(rest)


def check_added(answer: Callable[..., Tensor]) -> str | None:
    """An encoder that counts, and in which one film occurs twice."""

    def encode(items: list[int]) -> Tensor:
        return torch.tensor([float(sum(items)), float(len(items)), float(items[-1])])

    history = [4, 7, 4, 9]
    for place in (0, 1, 3):
        given = list(history)
        got, expected = answer(encode, given, place), added(encode, history, place)
        if given != history:
            return "the history that was handed in has changed: work on a copy"
        if torch.equal(torch.as_tensor(got), expected):
            continue
        if torch.equal(torch.as_tensor(got), -expected):
            return "the sign is turned round: with the film, minus without it"
        if torch.equal(torch.as_tensor(got), encode(history) - encode(history[:place] or [0])):
            return "only the film at `place` is to be left out, not all that follow it"
        without = [item for item in history if item != history[place]]
        if torch.equal(torch.as_tensor(got), encode(history) - encode(without)):
            return "every occurrence of the film was left out: remove one place, not one title"
        return f"place {place}: expected {expected.tolist()}, got {torch.as_tensor(got).tolist()}"
    return None


def blurred(word: Tensor, noise: Tensor, cosine: float) -> Tensor:
    """A vector of the word's length whose cosine with it is exactly ``cosine``; word and noise have shape (n,)."""
    unit = word / word.norm()
    across = noise - (noise @ unit) * unit
    across = across / across.norm()
    return word.norm() * (cosine * unit + (1 - cosine**2) ** 0.5 * across)


def check_blurred(answer: Callable[..., Tensor]) -> str | None:
    """Cosine and length of what comes out, for a drawn word and noise that leans towards it."""
    draw = torch.Generator().manual_seed(9)
    word = 3 * torch.randn(40, generator=draw)
    noise = torch.randn(40, generator=draw) + 0.2 * word
    for cosine in (0.8, 0.3, 1.0):
        got = answer(word, noise, cosine)
        if not isinstance(got, Tensor) or got.shape != word.shape:
            return f"expected a tensor of shape (40,), got {getattr(got, 'shape', type(got).__name__)}"
        found = float(torch.nn.functional.cosine_similarity(got, word, dim=0))
        if abs(found - cosine) > 1e-3:
            unit = noise / noise.norm()
            plain = cosine * word / word.norm() + (1 - cosine**2) ** 0.5 * unit
            if abs(found - float(torch.nn.functional.cosine_similarity(plain, word, dim=0))) < 1e-3:
                return "the noise still holds a share of the word: take it out first"
            return f"asked for a cosine of {cosine}, got {found:.3f}"
        if abs(float(got.norm() / word.norm()) - 1) > 1e-3:
            long = f"{float(got.norm()):.2f} for a word of {float(word.norm()):.2f}"
            return f"the cosine is right, the length is not: {long}"
    return None


EXERCISES = {
    "align": Exercise(align, check_align, "one weight now always means the same distance from the present"),
    "added": Exercise(added, check_added, "a difference of two states stands for one film"),
    "blurred": Exercise(blurred, check_blurred, "share of the word and share of the noise add up as squares"),
}
