"""Notebook 06's exercises: their stubs and wrong answers, and right ones written otherwise."""

import math

import torch

from recnb.exercises.nb06 import EXERCISES, noised


def stub_noised(x0, kept, noise):
    """x_t: the share kept of the signal's power, the rest noise."""
    ...


def stub_compose(steps):
    """The one map x -> M x + m that does what all steps x -> G x + c do, in their order."""
    ...


def stub_ddim_step(x, x0, kept, then):
    """From x_t with share kept to an earlier step with share then."""
    ...


STUBS = {"noised": stub_noised, "compose": stub_compose, "ddim_step": stub_ddim_step}


def product(steps):
    matrix = torch.eye(3)
    for turn, _ in steps:
        matrix = turn @ matrix
    return matrix


WRONG = [
    ("noised", lambda x0, kept, e: kept * x0 + (1 - kept) * e, "without square roots"),
    ("noised", lambda x0, kept, e: math.sqrt(1 - kept) * x0 + math.sqrt(kept) * e, "changed places"),
    ("noised", lambda x0, kept, e: kept**0.5 * x0 + e, "full strength"),
    ("noised", lambda x0, kept, e: x0 + (1 - kept) ** 0.5 * e, "not damped"),
    ("compose", lambda steps: EXERCISES["compose"].solution(steps[::-1]), "reverse order"),
    ("compose", lambda steps: (product(steps), sum(c for _, c in steps)), "turn the old shift"),
    ("compose", lambda steps: product(steps), "return two things"),
    ("ddim_step", lambda x, x0, kept, then: x0, "jumps to the predicted item"),
    ("ddim_step", lambda x, x0, kept, then: noised(x0, then, x), "x itself is not noise"),
    ("ddim_step", lambda x, x0, kept, then: noised(x0, then, x - kept**0.5 * x0), "divide by its square root"),
    ("ddim_step", lambda x, x0, kept, then: noised(x0, then, torch.randn_like(x)), "draws new noise"),
]


def test_right_answers_written_otherwise_pass():
    def by_homogeneous_matrices(steps):
        whole = torch.eye(4)
        for turn, push in steps:
            step = torch.eye(4)
            step[:3, :3], step[:3, 3] = turn, push
            whole = step @ whole
        return whole[:3, :3], whole[:3, 3]

    def by_ratio(x, x0, kept, then):
        share = math.sqrt((1 - then) / (1 - kept))
        return share * x + (math.sqrt(then) - share * math.sqrt(kept)) * x0

    assert EXERCISES["compose"].check(by_homogeneous_matrices) is None
    assert EXERCISES["ddim_step"].check(by_ratio) is None
    assert EXERCISES["noised"].check(lambda x0, kept, e: math.sqrt(kept) * x0 + math.sqrt(1 - kept) * e) is None
