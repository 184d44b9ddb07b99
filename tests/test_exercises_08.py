"""Notebook 08's exercises: their stubs and wrong answers, and right ones written otherwise."""

import numpy as np
import torch

from recnb.exercises.nb08 import EXERCISES
from recnb.exercises.nb08 import returns as true_returns


def stub_returns(rewards, gamma):
    """G_t = r_t + gamma G_{t+1}: what a step was worth with all that followed (T,)."""
    ...


def stub_double_q_target(reward, done, values, other_values, gamma):
    """y = r + gamma (1 - done) Q'(s', argmax_a Q(s', a)); values and other_values are (M, n_items)."""
    ...


def stub_conservative(values, action):
    """Mean of log sum_a exp Q(s, a) - Q(s, a_data); values (M, n_items), action (M,)."""
    ...


STUBS = {"returns": stub_returns, "double_q_target": stub_double_q_target, "conservative": stub_conservative}


def taken(values, action):
    return values[torch.arange(len(action)), action]


WRONG = [
    ("returns", lambda r, g: true_returns(r[::-1], g)[::-1], "looks back"),
    ("returns", lambda r, g: np.cumsum(r[::-1])[::-1], "nothing is discounted"),
    ("returns", lambda r, g: g * true_returns(r, g), "missing or discounted"),
    ("returns", lambda r, g: r + g * np.append(r[1:], 0), "only one step ahead"),
    ("returns", lambda r, g: true_returns(r, g) - r, "left out"),
    ("returns", lambda r, g: true_returns(r, g)[0], "one number a step"),
    ("double_q_target", lambda r, d, q, o, g: r + g * o.gather(1, q.argmax(1)[:, None])[:, 0], "mind `done`"),
    ("double_q_target", lambda r, d, q, o, g: r + g * (1 - d) * q.amax(1), "both chooses and judges"),
    ("double_q_target", lambda r, d, q, o, g: r + g * (1 - d) * o.amax(1), "chooses for itself"),
    ("double_q_target", lambda r, d, q, o, g: r + g * (1 - d) * taken(q, o.argmax(1)), "changed places"),
    ("double_q_target", lambda r, d, q, o, g: r + (1 - d) * taken(o, q.argmax(1)), "not discounted"),
    ("double_q_target", lambda r, d, q, o, g: r + g * (1 - d) * o, "shape (3,)"),
    ("conservative", lambda q, a: (taken(q, a) - q.logsumexp(1)).mean(), "sign is turned"),
    ("conservative", lambda q, a: q.logsumexp(1).mean(), "not taken away"),
    ("conservative", lambda q, a: (q.exp().sum(1) - taken(q, a)).mean(), "logarithm is missing"),
    ("conservative", lambda q, a: (q.mean(1) - taken(q, a)).mean(), "mean over actions"),
    ("conservative", lambda q, a: (q.amax(1) - taken(q, a)).mean(), "only one action"),
    ("conservative", lambda q, a: (q.logsumexp(1) - taken(q, a)).sum(), "take the mean"),
    ("conservative", lambda q, a: (q.exp().sum(1).log() - taken(q, a)).mean(), "overflows"),
]


def test_right_answers_written_otherwise_pass():
    def by_powers(rewards, gamma):
        reach = np.arange(len(rewards))
        return np.triu(gamma ** np.maximum(reach - reach[:, None], 0)) @ rewards

    def by_rows(reward, done, values, other_values, gamma):
        rows = zip(reward, done, values, other_values, strict=True)
        return torch.stack([r if d else r + gamma * o[q.argmax()] for r, d, q, o in rows])

    def by_cross_entropy(values, action):
        return torch.nn.functional.cross_entropy(values, action)

    right = {"returns": by_powers, "double_q_target": by_rows, "conservative": by_cross_entropy}
    for name, answer in right.items():
        assert EXERCISES[name].check(answer) is None, name
