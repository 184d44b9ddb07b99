"""Offline reinforcement learning on sequential recommenders: SQN, SAC, SNQN, SA2C, and an MCRL-style agent.

The Markov decision process of a recommender (Xin et al., SIGIR 2020): the state is what a backbone makes of a
history, the action is the next item, the reward is what the user thought of it, and the end of a history is terminal.
One encoder feeds two heads: scores that rank, trained by cross-entropy, and values Q, trained by temporal differences.

MCRL (arXiv 2310.16566) has no public code and only its abstract was at hand. What is called "MCRL-style" here is a
reading of that abstract: conservative values, and reward and transition models learnt from positive and negative
state-action pairs. Every term has a weight; 0 leaves it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recnb import backbones
from recnb.backbones import BackboneConfig

ACTORS = ("plain", "value", "advantage", "reward")


@dataclass(frozen=True)
class McrlConfig:
    """Which terms an agent has.

    Attributes:
        backbone: the encoder.
        td: weight of the temporal difference.
        gamma: discount; 0 sees no future and is the control.
        negatives: items a state that were not chosen, for the terms that contrast; 10 in SNQN.
        unchosen: weight of the temporal difference of those (SNQN): reward 0, and the state stays.
        conservative: weight of the conservative term (CQL).
        temperature: of its log-sum-exp; with 1 the spread of 1,682 values alone would carry them beyond any return.
        reward: weight of the contrastive reward model.
        transition: weight of the contrastive transition model.
        sharpness: temperature of the two contrasts.
        dummy: weight of a head that predicts how many steps came before: a control for any second loss.
        actor: what the cross-entropy of a step is multiplied by: "plain" 1, "value" Q (SAC), "advantage" (SA2C), or
            "reward" (the control without any value).
        warm: optimizer steps before an actor weight counts.
    """

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    td: float = 0.0
    gamma: float = 0.5
    negatives: int = 10
    unchosen: float = 0.0
    conservative: float = 0.0
    temperature: float = 0.1
    reward: float = 0.0
    transition: float = 0.0
    sharpness: float = 0.2
    dummy: float = 0.0
    actor: str = "plain"
    warm: int = 0

    def __post_init__(self) -> None:
        """Refuse a discount or an actor that there is not."""
        if not 0 <= self.gamma < 1 or self.actor not in ACTORS:
            raise ValueError(f"gamma {self.gamma}, actor {self.actor!r}; need 0 <= gamma < 1, {', '.join(ACTORS)}")


@dataclass
class Steps:
    """The steps of a batch, flat: M state-action pairs with what followed.

    Attributes:
        state: state before each action (M, d).
        after: state after it (M, d).
        action: the item that was chosen (M,).
        reward: what it was worth (M,).
        done: 1 where the history ends there, else 0 (M,).
        other: items that the user never had (M, n).
        place: how many steps of the piece came before (M,).
    """

    state: Tensor
    after: Tensor
    action: Tensor
    reward: Tensor
    done: Tensor
    other: Tensor
    place: Tensor


class Critic(nn.Module):
    """An encoder with its heads: scores (tied to its item embeddings), values, and the two models of the world.

    Args:
        n_items: size of the catalogue.
        config: see `McrlConfig`.
    """

    def __init__(self, n_items: int, config: McrlConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbones.build(n_items, config.backbone)
        dim = config.backbone.dim
        self.values = nn.Linear(dim, n_items)
        self.reward = nn.Sequential(nn.Linear(3 * dim, dim), nn.ReLU(), nn.Linear(dim, 1))
        self.dummy = nn.Linear(dim, 1)
        self.transition = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def rewards(self, state: Tensor, action: Tensor) -> Tensor:
        """The reward model r(s, a) = MLP([s; e_a; s * e_a]) for states (..., d) and items (...): (...)."""
        item = self.backbone.embed(action)
        return self.reward(torch.cat([state, item, state * item], -1)).squeeze(-1)

    def next_states(self, state: Tensor, action: Tensor) -> Tensor:
        """The transition model f([s; e_a]) for states (..., d) and items (...): (..., d)."""
        return self.transition(torch.cat([state, self.backbone.embed(action)], -1))


def chosen(values: Tensor, action: Tensor) -> Tensor:
    """Q(s, a) of values (M, n_items) and items (M,) or (M, n)."""
    return values.gather(1, action.reshape(len(action), -1)).view_as(action)


def double_q_target(reward: Tensor, done: Tensor, values: Tensor, target_values: Tensor, gamma: float) -> Tensor:
    """y = r + gamma (1 - done) Q'(s', argmax_a Q(s', a)): one network chooses, the other says what it is worth.

    Args:
        reward: (M,).
        done: (M,).
        values: Q(s', .) of the network that learns (M, n_items).
        target_values: Q'(s', .) of the other (M, n_items).
        gamma: discount.
    """
    return reward + gamma * (1 - done) * chosen(target_values, values.argmax(1))


def conservative_loss(values: Tensor, action: Tensor, temperature: float = 1.0) -> Tensor:
    """CQL: mean of tau log sum_a exp(Q(s, a) / tau) - Q(s, a_data), exact over the catalogue; never below 0."""
    spread = temperature * (values / temperature).logsumexp(1)
    return (spread - chosen(values, action)).mean()


def reward_loss(positive: Tensor, negative: Tensor, reward: Tensor, sharpness: float) -> Tensor:
    """What was chosen above what was not, and what was liked above what was not.

    -log softmax over (chosen, not chosen) of r / tau, plus the mean of max(0, (r_i - r_j) - (model_i - model_j)) over
    all pairs of the batch with r_i > r_j.

    Args:
        positive: the model's reward of the chosen items (M,).
        negative: of items that were not chosen (M, n).
        reward: what was logged (M,).
        sharpness: tau.
    """
    against = torch.cat([positive[:, None], negative], 1) / sharpness
    contrast = F.cross_entropy(against, torch.zeros(len(against), dtype=torch.long, device=against.device))
    wanted, given = reward[:, None] - reward, positive[:, None] - positive
    margin = F.relu(wanted - given)[wanted > 0]
    return contrast + (margin.mean() if len(margin) else 0.0)


def transition_loss(ahead: Tensor, instead: Tensor, after: Tensor, sharpness: float) -> Tensor:
    """InfoNCE: the imagined next state is most like the one that came, by cosine / tau.

    Against it stand the other next states of the batch, and the states imagined after items that were not chosen.

    Args:
        ahead: f(s, a) (M, d).
        instead: f(s, a-) (M, n, d).
        after: the next states (M, d); they give no gradient.
        sharpness: tau.
    """
    ahead, instead, after = (F.normalize(x, dim=-1) for x in (ahead, instead, after.detach()))
    within = ahead @ after.T
    hard = torch.einsum("mnd,md->mn", instead, after)
    against = torch.cat([within, hard], 1) / sharpness
    return F.cross_entropy(against, torch.arange(len(ahead), device=ahead.device))


class Mcrl(nn.Module):
    """Two critics: a fair coin says which of them learns from a batch, the other is its target. The first is used.

    Without values there is one.

    Args:
        n_items: size of the catalogue.
        config: see `McrlConfig`.
    """

    steps_done: Tensor

    def __init__(self, n_items: int, config: McrlConfig) -> None:
        super().__init__()
        self.config, self.n_items = config, n_items
        self.critics: Any = nn.ModuleList(Critic(n_items, config) for _ in range(2 if config.td else 1))
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.long))

    def forward(
        self, sequence: Tensor, reward: Tensor, ends: Tensor, skip: Tensor, known: Tensor, told: dict | None = None
    ) -> Tensor:
        """The loss of a batch of sequences: the sum of the weighted terms.

        Args:
            sequence: item ids (B, T), padded on the right with n_items.
            reward: of each item (B, T).
            ends: whether the sequence's last item is the last of its user (B,).
            skip: how many first steps of each sequence only give context (B,).
            known: items that the user has at any time (B, n_items); they are never taken as not chosen.
            told: is filled with the value of every term, to look at.
        """
        order = [0, 1] if len(self.critics) > 1 and torch.rand(()) < 0.5 else [1, 0]
        main, target = (self.critics[place % len(self.critics)] for place in order)
        real = self._real(sequence, skip)
        steps = self._steps(main, sequence, reward, ends, known, real)
        terms: dict[str, Tensor] = {}
        weight = torch.ones_like(steps.reward)
        if self.config.td:
            with torch.no_grad():
                states = target.backbone.states(sequence)
            values = main.values(steps.state)
            terms |= self._value_terms(main, target, steps, values, states[:, :-1][real], states[:, 1:][real])
            weight = self._actor(values.detach(), steps)
        terms |= self._world_terms(main, steps)
        if self.config.actor == "reward":
            weight = steps.reward / steps.reward.mean().clamp(min=1e-6)
        likelihood = F.cross_entropy(main.backbone.score(steps.state), steps.action, reduction="none")
        terms["cross-entropy"] = (weight * likelihood).mean()
        self.steps_done += self.training
        if told is not None:
            told.update({name: float(term.detach()) for name, term in terms.items()})
        return torch.stack(list(terms.values())).sum()

    def _real(self, sequence: Tensor, skip: Tensor) -> Tensor:
        """Which steps (B, T - 1) are counted: neither padding nor mere context."""
        place = torch.arange(sequence.shape[1] - 1, device=sequence.device)
        return (sequence[:, 1:] != self.n_items) & (place >= skip[:, None])

    def _steps(
        self, main: Critic, sequence: Tensor, reward: Tensor, ends: Tensor, known: Tensor, real: Tensor
    ) -> Steps:
        states, size = main.backbone.states(sequence), real.shape[1]
        place = torch.arange(size, device=real.device).expand_as(real)
        final = (sequence != self.n_items).sum(1) - 2  # the step to the last real item
        done = ends[:, None] & (place == final[:, None])
        drawn = torch.multinomial((~known).float(), size * self.config.negatives, replacement=True)
        other = drawn.view(*real.shape, self.config.negatives)
        pairs = (states[:, :-1], states[:, 1:], sequence[:, 1:], reward[:, 1:], done.float(), other, place)
        return Steps(*(each[real] for each in pairs))

    def _value_terms(
        self, main: Critic, target: Critic, steps: Steps, values: Tensor, here: Tensor, there: Tensor
    ) -> dict[str, Tensor]:
        """Temporal differences of what was chosen and what was not, and conservatism.

        Args:
            main: the critic that learns.
            target: the other.
            steps: as the first sees them.
            values: Q(s, .) of the first (M, n_items).
            here: the other's states s (M, d).
            there: and s' (M, d).
        """
        how = self.config
        with torch.no_grad():
            goal = double_q_target(steps.reward, steps.done, main.values(steps.after), target.values(there), how.gamma)
        terms = {"temporal difference": how.td * 0.5 * (goal - chosen(values, steps.action)).square().mean()}
        if how.unchosen:
            with torch.no_grad():  # who is not given an item stays where he is
                nothing = torch.zeros_like(steps.reward)
                stay = double_q_target(nothing, nothing, values, target.values(here), how.gamma)
            gaps = (stay[:, None] - chosen(values, steps.other)).square()
            terms["not chosen"] = how.unchosen * 0.5 * gaps.sum(1).mean()
        if how.conservative:
            terms["conservative"] = how.conservative * conservative_loss(values, steps.action, how.temperature)
        return terms

    def _world_terms(self, main: Critic, steps: Steps) -> dict[str, Tensor]:
        """The contrastive models of reward and transition, and the head that predicts nothing useful."""
        how, terms = self.config, dict[str, Tensor]()
        before = steps.state[:, None].expand(-1, how.negatives, -1)
        if how.reward:
            positive, negative = main.rewards(steps.state, steps.action), main.rewards(before, steps.other)
            terms["reward model"] = how.reward * reward_loss(positive, negative, steps.reward, how.sharpness)
        if how.transition:
            ahead, instead = main.next_states(steps.state, steps.action), main.next_states(before, steps.other)
            terms["transition model"] = how.transition * transition_loss(ahead, instead, steps.after, how.sharpness)
        if how.dummy:
            terms["dummy"] = how.dummy * F.mse_loss(main.dummy(steps.state)[:, 0], steps.place.float().log1p())
        return terms

    def _actor(self, values: Tensor, steps: Steps) -> Tensor:
        """What the cross-entropy of each step is multiplied by (M,)."""
        taken = chosen(values, steps.action)
        if self.config.actor not in ("value", "advantage") or self.steps_done < self.config.warm:
            return torch.ones_like(taken)
        if self.config.actor == "value":
            return taken
        mean = (taken + chosen(values, steps.other).sum(1)) / (1 + steps.other.shape[1])
        return (taken - mean).clamp(0, 10)
