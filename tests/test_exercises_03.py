"""Notebook 03's exercises: their stubs and wrong answers, and what else must hold of them."""

import torch

from recnb.exercises.nb03 import EXERCISES


def stub_splice(embeds, slots, vectors):
    """Return embeds with vectors (B, S, H) at positions slots (B, S)."""
    ...


def stub_answer_mask(prompt, answer):
    """True where the output predicts an answer token."""
    ...


def stub_hybrid_share(step, total):
    """Probability that a micro-batch is hybrid."""
    ...


STUBS = {"splice": stub_splice, "answer_mask": stub_answer_mask, "hybrid_share": stub_hybrid_share}


def rows(embeds):
    return torch.arange(len(embeds))[:, None]


def in_place(embeds, slots, vectors):
    embeds[rows(embeds), slots] = vectors.detach()
    return embeds


def added(embeds, slots, vectors):
    filled = embeds.clone()
    filled[rows(embeds), slots] += vectors
    return filled


def turned(embeds, slots, vectors):
    filled = embeds.clone()
    filled[rows(embeds), slots] = vectors.flip(1)
    return filled


def every_row(embeds, slots, vectors):
    filled = embeds.clone()
    filled[:, slots] = vectors
    return filled


def first_row(embeds, slots, vectors):
    filled = embeds.clone()
    filled[:, slots[0]] = vectors
    return filled


def cut_off(embeds, slots, vectors):
    filled = embeds.clone()
    filled[rows(embeds), slots] = vectors.detach()
    return filled


def by_loop(embeds, slots, vectors):
    filled = embeds.clone()
    for row, places in enumerate(slots):
        filled[row, places] = vectors[row]
    return filled


def mask(start, stop, extra=0):
    """A maker of masks: True from P + start up to P + A + stop."""

    def made(prompt, answer):
        place = torch.arange(int((prompt + answer).max()) - 1 + extra)
        return (place >= prompt[:, None] + start) & (place < (prompt + answer)[:, None] + stop)

    return made


WRONG = [
    ("splice", in_place, "changed `embeds` itself"),
    ("splice", added, "adds the vectors"),
    ("splice", turned, "order is turned round"),
    ("splice", every_row, "slots of all rows"),
    ("splice", first_row, "slots of the first row"),
    ("splice", cut_off, "no gradient reaches the vectors"),
    ("splice", by_loop, "it loops"),
    ("splice", lambda embeds, slots, vectors: embeds.clone(), "nothing was put in"),
    ("splice", lambda embeds, slots, vectors: vectors, "shape (2, 7, 4)"),
    ("splice", lambda embeds, slots, vectors: embeds * 2, "positions 0, 2 and 5"),
    ("answer_mask", mask(0, -1), "one step late"),
    ("answer_mask", mask(-2, -2), "one step early"),
    ("answer_mask", mask(-1, -2), "must learn to stop"),
    ("answer_mask", mask(-9, -1), "the prompt counts too"),
    ("answer_mask", mask(-1, 9), "padding counts too"),
    ("answer_mask", lambda p, a: ~mask(-1, -1)(p, a), "inverted"),
    ("answer_mask", mask(0, 0, extra=1), "expected shape (2, 6), got (2, 7)"),
    ("answer_mask", mask(-3, -1), "expected\n"),
    ("hybrid_share", lambda step, total: 1 - step / total, "it falls"),
    ("hybrid_share", lambda step, total: step % (total / 5) / (total / 5), "starts anew in every pass: count"),
    ("hybrid_share", lambda step, total: step % (total / 5) / total, "never passes one fifth"),
    ("hybrid_share", lambda step, total: 100 * step / total, "percentage"),
    ("hybrid_share", lambda step, total: step // total, "whole numbers only"),
    ("hybrid_share", lambda step, total: float(step >= 0.4 * total), "it jumps"),
    ("hybrid_share", lambda step, total: 1.0, "always 1"),
    ("hybrid_share", lambda step, total: (step / total) ** 2, "for steps"),
]


def test_right_answers_written_otherwise_pass():
    def by_scatter(embeds, slots, vectors):
        return embeds.scatter(1, slots[..., None].expand_as(vectors), vectors)

    def by_index_put(embeds, slots, vectors):
        return embeds.index_put((rows(embeds), slots), vectors)

    def by_steps_from_the_end(prompt, answer):
        place = torch.arange(int((prompt + answer).max()) - 1)[None] - prompt[:, None] + 1
        return (place >= 0) & (place < answer[:, None])

    assert EXERCISES["splice"].check(by_scatter) is None
    assert EXERCISES["splice"].check(by_index_put) is None
    assert EXERCISES["answer_mask"].check(by_steps_from_the_end) is None
