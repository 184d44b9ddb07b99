"""LLaRA: a language model reads a recommender's item vectors as a second modality (Liao et al., SIGIR 2024).

Every item of a prompt is its title with one slot, and the slot holds the item's vector, projected into the language
model's input space. The language model is trained with LoRA to continue the prompt with the next title. From the
paper: the projector, LoRA on all seven linear layers, hybrid prompts, the curriculum on the global step. Beyond the
paper, each a switch and named as such in the notebooks, and together what lets a small model learn in an hour: the
slot stands before its title, the projector begins as an isometry, a listwise loss on the candidates' slots, and a
warm start on prompts with certain answers (`recnb.llara_training.Plan`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recnb import llm
from recnb.llm import LanguageModel
from recnb.prompts import Prompt
from recnb.tuned import Tuned

STRATEGIES = ("curriculum", "direct", "text", "two-stage", "reversed", "resetting")
PASSES = 5  # the paper's epochs; "two-stage" and "resetting" are told in them


def hybrid_share(strategy: str, progress: float) -> float:
    """Probability that a micro-batch is hybrid when a share ``progress`` = tau / T of all steps is done.

    "curriculum" is the paper's p = tau / T. "two-stage" is text for 2 of 5 epochs, then hybrid. Two faults of the
    published code are kept for study: "reversed" (1 - tau / T), and "resetting", which starts anew in each of
    5 epochs and never passes 1/5.

    Raises:
        ValueError: unknown strategy.
    """
    shares = {
        "curriculum": progress,
        "direct": 1.0,
        "text": 0.0,
        "two-stage": float(progress >= 2 / PASSES),
        "reversed": 1 - progress,
        "resetting": (progress * PASSES) % 1 / PASSES,
    }
    if strategy not in shares:
        raise ValueError(f"strategy {strategy!r}; allowed: {', '.join(STRATEGIES)}")
    return shares[strategy]


@dataclass(frozen=True)
class LlaraConfig:
    """What decides the model; how it is trained stands in `recnb.llara_training.Plan`.

    Attributes:
        kind: of prompt, see `recnb.prompts.KINDS`.
        rank: of LoRA; the paper has 8.
        alpha: of LoRA; the paper has 32.
        dropout: of LoRA; the paper has .1.
        slot_first: an item's slot stands before its title; the paper has it after. A causal model binds a title to
            what came before it, so that the title's first word can be looked up by the slot.
        isometric: the projector begins as an isometry (`Projector.start_isometric`) instead of at random.
        listwise: weight of the listwise loss on candidate slots; the paper has none (0).
        layer: block after which the listwise loss reads; early enough for later blocks to use what it teaches.
    """

    kind: str = "hybrid"
    rank: int = 8
    alpha: int = 32
    dropout: float = 0.1
    slot_first: bool = True
    isometric: bool = True
    listwise: float = 1.0
    layer: int = 20


class Projector(nn.Module):
    """Proj(e) = W2 GELU(W1 e + b1) + b2, from an item vector's width d to the language model's H.

    Args:
        items: item vectors (n_items, d), for the shape and for `start_isometric`.
        width: H.
        norm: mean length that projected vectors begin with; 0 leaves torch's random start.
    """

    def __init__(self, items: Tensor, width: int, norm: float = 0.0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(items.shape[1], width), nn.Linear(width, width)
        if norm:
            self.start_isometric(items, norm)

    @torch.no_grad()
    def start_isometric(self, items: Tensor, norm: float) -> None:
        """Begin as e -> a U R (e - mean): angles between items survive, lengths become those of words.

        GELU(z) - GELU(-z) = z, so W1 = a [R; -R] and W2 = [U, -U], with orthonormal columns in R (H/2, d) and
        U (H, H/2), make the two layers exactly linear until training bends them.
        """
        half = self.first.weight.shape[0] // 2
        rotate, lift = torch.empty(half, items.shape[1]), torch.empty(len(self.second.weight), half)
        nn.init.orthogonal_(rotate)
        nn.init.orthogonal_(lift)
        mean = items.mean(0)
        scale = norm / (items - mean).norm(dim=1).mean()
        self.first.weight[: 2 * half] = scale * torch.cat([rotate, -rotate])
        self.first.bias[: 2 * half] = -self.first.weight[: 2 * half] @ mean
        self.second.weight[:, : 2 * half] = torch.cat([lift, -lift], 1)
        self.second.bias.zero_()

    def forward(self, vectors: Tensor) -> Tensor:
        """(S, d) -> (S, H)."""
        return self.second(F.gelu(self.first(vectors)))


class Llara(Tuned):
    """The language model with LoRA, the projector, and the frozen item vectors.

    The language model's own frozen weights are no part of this module's state: a checkpoint is a few megabytes.

    Args:
        lm: as loaded; LoRA is injected here.
        items: the frozen recommender's item vectors (n_items, d).
        config: see `LlaraConfig`.
    """

    items: Tensor
    placeholder: Tensor

    def __init__(self, lm: LanguageModel, items: Tensor, config: LlaraConfig = LlaraConfig()) -> None:
        super().__init__(llm.add_lora(lm, config.rank, config.alpha, config.dropout))
        self.config = config
        table = lm.embeddings.float()
        self.projector = Projector(items, table.shape[1], config.isometric * float(table.norm(dim=1).mean()))
        self.readout = nn.Linear(table.shape[1], 1) if config.listwise else None
        if self.readout is not None:
            nn.init.zeros_(self.readout.weight)
        self.register_buffer("items", items.detach().clone())
        self.register_buffer("placeholder", torch.randn(table.shape[1]) * table.std())
        self.to(lm.embeddings.device)

    def rows(self, prompts: Sequence[Prompt], blank: bool = False, tails: Sequence[Sequence[int]] = ()) -> list[Tensor]:
        """Input embeddings (T_i, H) of prompts, every slot of the batch filled in one go.

        Args:
            prompts: what to embed.
            blank: fill the slots with the placeholder, as in text-only prompts; the projector is then not used at all
                and gets no gradient.
            tails: token ids that follow each prompt.
        """
        whole = [np.append(p.ids, tail) for p, tail in zip(prompts, tails or [()] * len(prompts), strict=True)]
        starts = np.cumsum([0, *map(len, whole)])
        device = self.items.device
        ids = torch.from_numpy(np.concatenate(whole).astype(np.int64)).to(device)
        spots = np.concatenate([p.slots + start for p, start in zip(prompts, starts, strict=False)])
        table = self.lm.embeddings
        flat = table[ids]
        if len(spots):
            items = torch.from_numpy(np.concatenate([p.items for p in prompts])).to(device)
            filling = self.placeholder.expand(len(items), -1) if blank else self.projector(self.items[items])
            flat = flat.index_put((torch.from_numpy(spots).to(device),), filling.to(table.dtype))
        return list(flat.split(np.diff(starts).tolist()))

    def forward(self, prompts: Sequence[Prompt], blank: bool = False) -> Tensor:
        """Loss of a micro-batch: cross-entropy of the answers' tokens, plus the listwise loss where it is set."""
        answers = [p.answers[p.place] for p in prompts]
        embeds, _ = llm.pad(self.rows(prompts, blank, [answer[:-1] for answer in answers]))
        hidden, inner = llm.hidden_states(self.lm, embeds, self.config.layer)
        first = [row * embeds.shape[1] + len(p.ids) - 1 for row, p in enumerate(prompts)]
        where = [start + step for start, answer in zip(first, answers, strict=True) for step in range(len(answer))]
        tokens = [token for answer in answers for token in answer]
        place, said = (torch.tensor(values, device=embeds.device) for values in (where, tokens))
        loss = llm.answer_loss(self.lm, hidden, place, said)
        if self.readout is not None and len(prompts[0].slots):
            loss = loss + self.config.listwise * self.listwise_loss(prompts, self.slot_scores(prompts, inner))
        return loss

    def slot_scores(self, prompts: Sequence[Prompt], inner: Tensor) -> Tensor:
        """A score for every candidate (B, candidates), read linearly at its slot after block ``config.layer``."""
        assert self.readout is not None
        spots = np.stack([row * inner.shape[1] + p.slots[p.n_history :] for row, p in enumerate(prompts)])
        at_slots = inner.flatten(0, 1)[torch.from_numpy(spots).to(inner.device)].float()
        return self.readout(at_slots)[..., 0]

    def listwise_loss(self, prompts: Sequence[Prompt], scores: Tensor) -> Tensor:
        """-log softmax over the candidates' slot scores at the right one: every wrong candidate is pushed down."""
        place = torch.tensor([p.place for p in prompts], device=scores.device)
        return F.cross_entropy(scores, place)

    def match(self, prompts: Sequence[Prompt]) -> Tensor:
        """Slot scores (B, candidates) at the cost of the first ``config.layer`` blocks only."""
        embeds, _ = llm.pad(self.rows(prompts))
        return self.slot_scores(prompts, llm.hidden_states(self.lm, embeds, self.config.layer, stop=True)[1])

    @torch.no_grad()
    def answer(self, prompts: Sequence[Prompt], end: int, blank: bool = False) -> list[str]:
        """Greedy answers, one line each."""
        self.eval()
        return llm.generate(self.lm, self.rows(prompts, blank), end)

    @torch.no_grad()
    def likelihoods(self, prompts: Sequence[Prompt], blank: bool = False, batch: int = 8) -> np.ndarray:
        """Log-likelihood of every candidate's answer (n, candidates); prompts of like length run together."""
        self.eval()
        found = np.empty((len(prompts), len(prompts[0].answers)), dtype=np.float32)
        order = np.argsort([len(p.ids) for p in prompts], kind="stable")
        for start in range(0, len(order), batch):
            some = [prompts[row] for row in order[start : start + batch]]
            scores = llm.candidate_logprobs(self.lm, self.rows(some, blank), [p.answers for p in some])
            found[order[start : start + batch]] = scores.cpu().numpy()
        return found

    def weights(self) -> dict[str, Tensor]:
        """What ships: LoRA, projector, readout and vectors in 16 bits, half the size."""
        return {name: value.to(torch.bfloat16) for name, value in self.state_dict().items()}
