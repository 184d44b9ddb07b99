"""BIGRec: a language model says what comes next, and its words are grounded to real items (Bao et al., TORS 2025).

Step 1, to the language space: instruction tuning on a history and the name of the item that followed; no candidates
stand in the prompt. Step 2, to the item space: what the tuned model says is embedded by the *untuned* model, and all
items are ranked by their distance to it. A weight of every item, from counts or from a recommender, may bend the
distances. As published: the prompt's parts, loss on the prompt too, four beams of which the best counts, the last
token's final state, L2. Ours: LoRA on all linear layers. Items that share a name are one item, for every method.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from recnb import assets, llm
from recnb.data import Cases
from recnb.datasets import Dataset
from recnb.llm import LanguageModel
from recnb.prompts import DOMAINS, Words
from recnb.tuned import Tuned

Encode = Callable[[Sequence[str]], Tensor]
Reading = tuple[int | None, str]  # block after which states are read (None: the last, normed); "last" token or "mean"
PUBLISHED: Reading = (None, "last")
LIMIT = 32  # most tokens of an answer; all but a few names of MovieLens-100K fit

# The paper's four parts (preamble, instruction, input, response), in our words.
TEMPLATE = (
    "Below is an instruction and the input that it is about. Write a response that follows it.\n\n"
    "### Instruction:\nThe input lists what a user has {did} lately. Recommend a new {item} for this user to {do}.\n\n"
    "### Input:\n|\n\n### Response:\n"
)


def filed(title: str) -> str:
    """A title as MovieLens files it, the article behind: "Big Sleep, The".

    A search for the likeliest words goes word by word, and many titles begin with "The": in front, the article would
    be chosen first, for all of them together.
    """
    found = re.match(r"(The|A|An|Les|La|Le|Il|El|Das|Der) (.+?)( \(.*\))?$", title)
    return f"{found[2]}, {found[1]}{found[3] or ''}" if found else title


class Catalogue:
    """The names that there are to say: titles as they are filed, with the year where one is known.

    Attributes:
        names: each once.
        of_item: which name an item bears (n_items,).

    Args:
        dataset: whose items.
    """

    def __init__(self, dataset: Dataset) -> None:
        titles = [filed(" ".join(title.replace('"', "'").split())) for title in dataset.items["title"]]
        dates = dataset.items["year"].astype(str)
        full = [f"{title} ({year})" if year else title for title, year in zip(titles, dates, strict=True)]
        self.names = list(dict.fromkeys(full))
        place = {name: row for row, name in enumerate(self.names)}
        self.of_item = np.array([place[name] for name in full])

    def best(self, scores: np.ndarray) -> np.ndarray:
        """Scores of items (n, n_items) as scores of names (n, names): of those that bear a name, the best."""
        order = np.argsort(self.of_item, kind="stable")
        starts = np.searchsorted(self.of_item[order], np.arange(len(self.names)))
        return np.maximum.reduceat(scores[:, order], starts, axis=1)

    def counts(self, popularity: np.ndarray) -> np.ndarray:
        """Counts of items (n_items,) as counts of names (names,): of those that bear a name, the sum."""
        return np.bincount(self.of_item, popularity, len(self.names))


@dataclass(frozen=True)
class Row:
    """A prompt with its answer: token ids (T,), and where what is to be learnt begins."""

    ids: list[int]
    start: int


class Instructions:
    """Writes what the model is asked and what it should say.

    Args:
        tokenizer: of the language model.
        catalogue: the names.
        domain: dataset whose words are used (`prompts.DOMAINS`).
    """

    def __init__(self, tokenizer: Any, catalogue: Catalogue, domain: str = "ml-100k") -> None:
        self.tokenizer, self.catalogue = tokenizer, catalogue
        words = DOMAINS.get(domain, Words())
        self.head, self.tail = TEMPLATE.format(item=words.item, did=words.did, do=words.do).split("|")
        self.end = int(tokenizer.eos_token_id)

    def quoted(self, items: Sequence[int] | np.ndarray) -> str:
        """The names of items, each in quotation marks, with commas between."""
        return ", ".join(f'"{self.catalogue.names[row]}"' for row in self.catalogue.of_item[np.asarray(items, int)])

    def question(self, history: np.ndarray) -> str:
        """The whole prompt for a history of item ids, oldest first."""
        return self.head + self.quoted(history) + self.tail

    def ids(self, text: str) -> list[int]:
        """A text as token ids."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def row(self, history: np.ndarray, target: int, whole: bool = True) -> Row:
        """A training row.

        Args:
            history: item ids, oldest first.
            target: the item that came next.
            whole: learn to say the history's names too, each from those before it, as the published code does; the
                opening that all prompts share is never learnt.
        """
        first = len(self.ids(self.head if whole else self.question(history)))
        return Row(self.ids(self.question(history) + self.quoted([target])) + [self.end], first)

    def batches(self, cases: Cases, size: int, whole: bool) -> list[list[Row]]:
        """Training rows of cases in groups of ``size``, rows of like length together."""
        rows = [self.row(h, int(t), whole) for h, t in zip(cases.history, cases.target, strict=True)]
        rows.sort(key=lambda row: len(row.ids))
        return [rows[at : at + size] for at in range(0, len(rows), size)]


def spoken(line: str) -> str:
    """What a generated line names: the words between its first quotation marks."""
    found = re.match(r'\s*"?([^"]*)', line)
    return found[1].strip() if found else ""


@dataclass(frozen=True)
class BigRecConfig:
    """What decides the model.

    Attributes:
        rank: of LoRA; the paper has 8.
        alpha: of LoRA; the paper has 16.
        dropout: of LoRA; the paper has .05.
        targets: layers with LoRA. The paper has queries and values, 4 million numbers in its 7B model; half a million
            in a small one learn too slowly.
        whole: loss on the history's names too, see `Instructions.row`.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    targets: tuple[str, ...] = llm.TARGETS
    whole: bool = True


class BigRec(Tuned):
    """The language model with LoRA.

    Args:
        lm: as loaded; LoRA is injected here.
        config: see `BigRecConfig`.
    """

    def __init__(self, lm: LanguageModel, config: BigRecConfig = BigRecConfig()) -> None:
        super().__init__(llm.add_lora(lm, config.rank, config.alpha, config.dropout, config.targets))
        self.config = config

    def embedded(self, ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """Input embeddings (T_i, H) of token ids."""
        device = self.lm.embeddings.device
        return [self.lm.embeddings[torch.tensor(some, device=device)] for some in ids]

    def forward(self, rows: Sequence[Row]) -> Tensor:
        """Mean cross-entropy of the tokens from each row's ``start`` on."""
        embeds, _ = llm.pad(self.embedded([row.ids[:-1] for row in rows]))
        hidden = self.lm.body(inputs_embeds=embeds, use_cache=False).last_hidden_state
        long = embeds.shape[1]
        where = [place * long + t - 1 for place, row in enumerate(rows) for t in range(row.start, len(row.ids))]
        said = [token for row in rows for token in row.ids[row.start :]]
        return llm.answer_loss(self.lm, hidden, *(torch.tensor(some, device=hidden.device) for some in (where, said)))

    @torch.no_grad()
    def say(self, questions: Sequence[Sequence[int]], end: int, beams: int = 4) -> list[list[str]]:
        """What the model names, ``beams`` answers a question, likeliest first; only the first is grounded.

        Args:
            questions: token ids of each prompt.
            end: id that ends an answer.
            beams: of the search; 1 is greedy.
        """
        self.eval()
        rows = self.embedded(questions)
        if beams == 1:
            return [[spoken(line)] for line in llm.generate(self.lm, rows, end, LIMIT, batch=32)]
        return [[spoken(line) for line in lines] for lines in llm.beams(self.lm, rows, end, beams, LIMIT)]


@torch.no_grad()
def states_of_words(
    lm: LanguageModel, texts: Sequence[str], readings: Sequence[Reading] = (PUBLISHED,), batch: int = 64
) -> list[Tensor]:
    """Texts as states of a language model, read in several ways in one pass: (n, H) for each reading.

    Args:
        lm: the published choice is the model before tuning.
        texts: what to embed.
        readings: after which block, and of which tokens, see `Reading`.
        batch: texts at once.

    Raises:
        ValueError: unknown pooling, or no such block.
    """
    if wrong := {pooling for _, pooling in readings} - {"last", "mean"}:
        raise ValueError(f"pooling {wrong.pop()!r}; allowed: 'last', 'mean'")
    blocks = [block for block, _ in readings if block is not None]
    empty = [int(lm.tokenizer.eos_token_id)]  # a model that says nothing still says that
    ids = [lm.tokenizer(text, add_special_tokens=False)["input_ids"] or empty for text in texts]
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    found = [torch.empty(len(ids), lm.embeddings.shape[1]) for _ in readings]
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        lengths = torch.tensor([len(ids[row]) for row in some])
        rows = [lm.embeddings[torch.tensor(ids[row], device=lm.embeddings.device)] for row in some]
        embeds = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        after = llm.hidden_states(lm, embeds, *blocks, stop=len(blocks) == len(readings))
        states = dict(zip([None, *blocks], after, strict=True))
        step = torch.arange(embeds.shape[1])
        kept = {"mean": step < lengths[:, None], "last": step == lengths[:, None] - 1}
        for (block, pooling), points in zip(readings, found, strict=True):
            share = kept[pooling] / kept[pooling].sum(1, keepdim=True)
            points[torch.tensor(some)] = torch.einsum("bth,bt->bh", states[block].float().cpu(), share)
    return found


def sentence_vectors() -> Encode:
    """A function from texts to unit vectors (n, 256): WordLlama, word vectors trained to embed sentences by their mean.

    L2 between unit vectors orders as cosine does.
    """
    folder = assets.fetch("wordllama")
    tokenizer = Tokenizer.from_file(str(next(folder.glob("*tokenizer*.json"))))
    (table,) = load_file(next(folder.glob("*.safetensors"))).values()

    def encode(texts: Sequence[str]) -> Tensor:
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        means = [table[torch.tensor(some or [0])].float().mean(0) for some in ids]
        return nn.functional.normalize(torch.stack(means), dim=1)

    return encode


class Grounding:
    """Names as points; a text is grounded to the nearest. Every text is embedded once.

    Args:
        names: of the catalogue.
        encode: texts to vectors.
        points: vectors of the names, when they are known already (names, H).
    """

    def __init__(self, names: Sequence[str], encode: Encode, points: Tensor | None = None) -> None:
        self.names, self.encode = list(names), encode
        self.points = encode(self.names) if points is None else points
        self._known = dict(zip(self.names, self.points, strict=True))

    def distances(self, texts: Sequence[str]) -> np.ndarray:
        """D = ||e(text) - e(name)||_2 for every name: (n, names). A name that is said right has distance 0."""
        new = sorted({text for text in texts if text not in self._known})
        if new:
            self._known |= dict(zip(new, self.encode(new), strict=True))
        once, place = np.unique(np.asarray(texts, dtype=object), return_inverse=True)
        said = torch.stack([self._known[text] for text in once])
        return torch.cdist(said, self.points, compute_mode="donot_use_mm_for_euclid_dist").numpy()[place]


def exact(texts: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """0 where a text is a name, letter case aside, else 1: (n, names). A text that is no name ranks by chance."""
    place = {name.lower(): row for row, name in enumerate(names)}
    found = np.ones((len(texts), len(names)), dtype=np.float32)
    for row, text in enumerate(texts):
        if text.lower() in place:
            found[row, place[text.lower()]] = 0
    return found


def edits(texts: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Levenshtein distance of every text to every name, as a share of the longer one's letters: (n, names)."""
    return process.cdist(texts, names, scorer=Levenshtein.normalized_distance, dtype=np.float32)


def to_unit(values: np.ndarray) -> np.ndarray:
    """(x - min) / (max - min) along the last axis; zeros where all are equal."""
    low, high = values.min(-1, keepdims=True), values.max(-1, keepdims=True)
    return (values - low) / np.where(high > low, high - low, 1)


def reweighted(distances: np.ndarray, weight: np.ndarray, gamma: float) -> np.ndarray:
    """D' = Dn (1 + W)^-gamma, with Dn and W scaled to [0, 1] a row.

    The nearest name has Dn = 0 whatever its weight: the first place, HR@1 and NDCG@1 can never change.

    Args:
        distances: (n, names).
        weight: of every name (names,), or for every case as well (n, names).
        gamma: strength, at least 0; 0 changes no order.

    Raises:
        ValueError: a negative gamma, or a weight that does not fit.
    """
    if gamma < 0 or weight.shape[-1] != distances.shape[1]:
        raise ValueError(f"gamma {gamma}, weights {weight.shape}; need gamma >= 0 and (n, {distances.shape[1]})")
    return to_unit(distances.astype(np.float64)) * (1 + to_unit(weight)) ** -gamma
