"""Notebook 07's exercises: their stubs and wrong answers, and right ones written otherwise."""

import torch

from recnb.exercises.nb07 import EXERCISES, align


def stub_align(states, length):
    """States (L, d) of which the first length are real, moved to the end; zeros before them."""
    ...


def stub_added(encode, history, place):
    """Pooled state of the whole history, minus that of the history without the film at place."""
    ...


def stub_blurred(word, noise, cosine):
    """A vector of the word's length whose cosine with it is exactly cosine."""
    ...


STUBS = {"align": stub_align, "added": stub_added, "blurred": stub_blurred}


def mixed(word, noise, cosine):
    return cosine * word / word.norm() + (1 - cosine**2) ** 0.5 * noise / noise.norm()


def popped(encode, history, place):
    whole = encode(history)
    history.pop(place)
    return whole - encode(history)


WRONG = [
    ("align", lambda states, n: states[:n], "expected a tensor of shape"),
    ("align", lambda states, n: states.roll(len(states) - n, 0), "must be zero"),
    ("align", lambda states, n: align(states, n).flip(0), "turned round"),
    ("align", lambda states, n: torch.cat([states[:n], 0 * states[n:]]), "still stand at the beginning"),
    ("added", lambda encode, h, p: encode(h[:p] + h[p + 1 :]) - encode(h), "sign"),
    ("added", lambda encode, h, p: encode(h) - encode(h[:p] or [0]), "not all that follow"),
    ("added", lambda encode, h, p: encode(h) - encode([x for x in h if x != h[p]]), "not one title"),
    ("added", popped, "has changed"),
    ("blurred", mixed, "take it out first"),
    ("blurred", lambda w, e, c: EXERCISES["blurred"].solution(w, e, c) / w.norm(), "the length is not"),
    ("blurred", lambda w, e, c: w, "asked for a cosine"),
]


def test_right_answers_written_otherwise_pass():
    def padded(states, length):
        return torch.nn.functional.pad(states[:length], (0, 0, len(states) - length, 0))

    def deleted(encode, history, place):
        return encode(history) - encode(history[:place] + history[place + 1 :])

    assert EXERCISES["align"].check(padded) is None
    assert EXERCISES["added"].check(deleted) is None
