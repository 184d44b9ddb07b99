"""Exercises of notebook 08: what followed a step, the target of a value, and how sure a value may be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from recnb.lessons import Exercise


def returns(rewards: np.ndarray, gamma: float) -> np.ndarray:
    """G_t = r_t + gamma G_{t+1}: what a step was worth with all that followed (T,)."""
    total, found = 0.0, np.empty(len(rewards))
    for step in reversed(range(len(rewards))):
        found[step] = total = rewards[step] + gamma * total
    return found


def check_returns(answer: Callable[..., np.ndarray]) -> str | None:
    """Compare with the definition, and name the usual slips."""
    rewards, gamma = np.array([1.0, 0.2, 0.2, 1.0]), 0.5
    got, expected = np.asarray(answer(rewards.copy(), gamma), dtype=float), returns(rewards, gamma)
    if got.shape != expected.shape:
        return f"expected one number a step, shape (4,), got {got.shape}"
    if np.allclose(got, expected):
        return None
    mistakes = {
        "this looks back: a step is worth what comes after it": returns(rewards[::-1], gamma)[::-1],
        "nothing is discounted": returns(rewards, 1.0),
        "the step's own reward is missing or discounted": expected * gamma,
        "only one step ahead is added: the return goes on to the end": rewards + gamma * np.append(rewards[1:], 0),
        "the reward of the step itself is left out": expected - rewards,
    }
    for message, wrong in mistakes.items():
        if np.allclose(got, wrong):
            return message
    return f"for rewards {rewards.tolist()} and gamma 0.5 expected {expected.tolist()}, got {got.tolist()}"


def double_q_target(reward: Tensor, done: Tensor, values: Tensor, other_values: Tensor, gamma: float) -> Tensor:
    """y = r + gamma (1 - done) Q'(s', argmax_a Q(s', a)); values and other_values are (M, n_items)."""
    favourite = values.argmax(1, keepdim=True)
    return reward + gamma * (1 - done) * other_values.gather(1, favourite)[:, 0]


def check_double_q_target(answer: Callable[..., Tensor]) -> str | None:
    """Small tables in which every slip gives another number."""
    reward, done = torch.tensor([1.0, 0.2, 1.0]), torch.tensor([0.0, 0.0, 1.0])
    values = torch.tensor([[1.0, 4.0, 2.0], [5.0, 0.0, 1.0], [0.0, 1.0, 3.0]])
    other = torch.tensor([[6.0, 2.0, 8.0], [1.0, 9.0, 3.0], [4.0, 4.0, 7.0]])
    got, expected = answer(reward, done, values, other, 0.5), double_q_target(reward, done, values, other, 0.5)
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        return f"expected a tensor of shape (3,), got {getattr(got, 'shape', type(got).__name__)}"
    if torch.allclose(got, expected):
        return None
    future = double_q_target(reward, torch.zeros(3), values, other, 0.5)
    mistakes = {
        "where a history ends there is no future: mind `done`": future,
        "one network both chooses and judges: take the other's value of the first one's favourite": (
            reward + 0.5 * (1 - done) * values.amax(1)
        ),
        "the other network chooses for itself: its value is wanted at the first one's favourite": (
            reward + 0.5 * (1 - done) * other.amax(1)
        ),
        "the two networks have changed places": double_q_target(reward, done, other, values, 0.5),
        "the future is not discounted": double_q_target(reward, done, values, other, 1.0),
    }
    for message, wrong in mistakes.items():
        if torch.allclose(got, wrong):
            return message
    return f"expected {expected.tolist()}, got {got.tolist()}"


def conservative(values: Tensor, action: Tensor) -> Tensor:
    """Mean of log sum_a exp Q(s, a) - Q(s, a_data); values (M, n_items), action (M,)."""
    return (values.logsumexp(1) - values.gather(1, action[:, None])[:, 0]).mean()


def check_conservative(answer: Callable[..., Tensor]) -> str | None:
    """Compare with the definition; large values must not overflow."""
    draw = torch.Generator().manual_seed(8)
    values, action = torch.randn(4, 6, generator=draw), torch.tensor([0, 5, 2, 2])
    got, expected = answer(values, action), conservative(values, action)
    if not isinstance(got, Tensor) or got.numel() != 1:
        return f"expected one number as a tensor, got {getattr(got, 'shape', type(got).__name__)}"
    taken = values.gather(1, action[:, None])[:, 0]
    if torch.allclose(got, expected, atol=1e-5):
        huge = answer(values + 200, action)
        return None if torch.isfinite(huge) else "exp overflows for values near 200: use logsumexp"
    mistakes = {
        "the sign is turned: it would raise what nobody tried": -expected,
        "the logged action is not taken away": values.logsumexp(1).mean(),
        "the logarithm is missing": (values.exp().sum(1) - taken).mean(),
        "the mean over actions is not their log-sum-exp": (values.mean(1) - taken).mean(),
        "a maximum is not a log-sum-exp: only one action would be held down": (values.amax(1) - taken).mean(),
        "summed over states: take the mean": expected * 4,
    }
    for message, wrong in mistakes.items():
        if torch.allclose(got, wrong, atol=1e-5):
            return message
    return f"expected {float(expected):.4f}, got {float(got):.4f}"


EXERCISES = {
    "returns": Exercise(returns, check_returns, "a reward far away counts less, and the last step has only its own"),
    "double_q_target": Exercise(
        double_q_target, check_double_q_target, "who chooses does not also say how good the choice was"
    ),
    "conservative": Exercise(conservative, check_conservative, "what was logged rises against all that was not"),
}
