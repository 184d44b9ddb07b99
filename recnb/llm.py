"""A pretrained causal language model: loading, LoRA with a fused step, answer-only loss, generation, scoring.

Nothing here knows of recommenders: a prompt arrives as input embeddings (B, T, H) with the length of each row, and
what fills its slots has been decided before. Rows are padded on the right for training and scoring, where the causal
mask alone keeps padding out, and on the left for generation.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from recnb import assets
from recnb.prefix import Prefix, read_once

DEFAULT = "smollm2-135m-instruct"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        model: the transformers model, LoRA layers injected or not.
        tokenizer: its tokenizer.
        name: as given to `load`.
    """

    model: Any
    tokenizer: Any
    name: str

    @property
    def body(self) -> Any:
        """The decoder without its output head: input embeddings (B, T, H) to final hidden states (B, T, H)."""
        return getattr(self.model, self.model.base_model_prefix)

    @property
    def embeddings(self) -> Tensor:
        """Token embedding table (V, H)."""
        return self.model.get_input_embeddings().weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token scores (M, V) in float32 from final hidden states (M, H); two dimensions, see `load`."""
        return self.model.get_output_embeddings()(hidden).float()


def precision(device: str = "cpu") -> torch.dtype:
    """bfloat16 on a GPU and on processors with instructions for it (there it is twice as fast), else float32."""
    if device != "cpu":
        return torch.bfloat16
    fast = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)
    return torch.bfloat16 if any(supported() for supported in fast) else torch.float32


def load(name: str = DEFAULT, dtype: torch.dtype | None = None) -> LanguageModel:
    """Load a language model, frozen.

    Args:
        name: the embedded default, a folder, or a hub name of any causal language model.
        dtype: of the weights; None takes what is fastest here (`precision`).

    Raises:
        OSError: when there is no such model, in one line with what to do.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source: Any = assets.fetch(DEFAULT) if name == DEFAULT else name
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype or precision(device))
        if isinstance(end := model.config.eos_token_id, int):  # some versions of transformers read another from GGUF
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
        if device == "cpu" and model.config._attn_implementation == "sdpa":
            model.set_attn_implementation("grouped")
    except (OSError, ValueError) as error:
        raise OSError(
            f"no language model {name!r}: give {DEFAULT!r}, a folder with a transformers model, or a hub name "
            f"that this machine can download ({str(error).splitlines()[0]})"
        ) from error
    # of a slice (B, 1, H) a batched product is taken, which copies the vocabulary's matrix for every row
    model.get_output_embeddings().register_forward_pre_hook(lambda head, given: (given[0].contiguous(),))
    model.requires_grad_(False)
    return LanguageModel(model.eval().to(device), tokenizer, name)


def grouped_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention of query heads (B, n, T, D) over fewer key and value heads (B, m, S, D): softmax(q k' / sqrt(D)) v.

    The n / m query heads that share a key head are laid end to end, so that keys need no copies, and products are
    plain batched ones. On a CPU the way back takes a third of the time that torch's fused kernel takes; elsewhere,
    and for single tokens, that kernel is used.

    Returns:
        (B, T, n, D), as transformers wants it, and no weights.
    """
    (size, heads, steps, width), shared = query.shape, key.shape[1]
    if steps == 1 or query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if attention_mask is None:
        attention_mask = torch.ones(steps, key.shape[2], dtype=torch.bool).tril(key.shape[2] - steps)
    if attention_mask.dtype == torch.bool:
        lowest = torch.finfo(query.dtype).min
        attention_mask = torch.zeros((), dtype=query.dtype).masked_fill(~attention_mask, lowest)
    if attention_mask.dim() == 4:
        attention_mask = attention_mask[:, :, None]  # over the heads of a group
    packed = query.reshape(size, shared, -1, width) * width**-0.5
    scores = (packed @ key.transpose(2, 3)).unflatten(2, (heads // shared, steps)) + attention_mask
    mixed = scores.softmax(-1).flatten(2, 3) @ value
    return mixed.view(size, heads, steps, width).transpose(1, 2).contiguous(), None


transformers.utils.logging.disable_progress_bar()  # loading takes a second
transformers.AttentionInterface.register("grouped", grouped_attention)
transformers.AttentionMaskInterface.register("grouped", sdpa_mask)


class _LoraProduct(torch.autograd.Function):
    """y = x W' + (x A') B' for frozen W; keeps only x and x A' for the way back.

    peft's own forward casts x to float32 and keeps that, and keeps x after dropout once more for each of the seven
    products: several times the memory and half the speed of this.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, down: Tensor, up: Tensor) -> Tensor:  # type: ignore[override]
        flat = x.reshape(-1, x.shape[-1])
        small = flat @ down.T
        ctx.save_for_backward(flat, weight, down, up, small)
        return (flat @ weight.T).addmm_(small, up.T).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, down, up, small = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        inner = flat @ up
        back = (flat @ weight).addmm_(inner, down) if ctx.needs_input_grad[0] else None
        back = None if back is None else back.view(*grad.shape[:-1], -1)
        return back, None, inner.T @ x, flat.T @ small


def _fused_forward(self: Any, x: Tensor) -> Tensor:
    """A peft LoRA layer's output by `_LoraProduct`.

    Dropout falls on the input features of the low-rank branch, drawn once a call for all tokens: it then costs
    nothing, where drawing it for every token costs a pass over the activations in each product.
    """
    base = self.base_layer
    if self.disable_adapters:
        return base(x)
    down, up = self.lora_A["default"].weight, self.lora_B["default"].weight * self.scaling["default"]
    drop = self.lora_dropout["default"]
    if self.training and isinstance(drop, nn.Dropout):
        down = down * drop(torch.ones_like(down[:1]))
    y = _LoraProduct.apply(x, base.weight, down.to(x.dtype), up.to(x.dtype))
    return y if base.bias is None else y + base.bias


def add_lora(
    lm: LanguageModel,
    rank: int = 8,
    alpha: int = 32,
    dropout: float = 0.1,
    targets: Sequence[str] = TARGETS,
    fused: bool = True,
) -> LanguageModel:
    """Inject LoRA layers in place with peft: W x + (alpha / rank) B A x, with A random and B zero at first.

    Args:
        lm: a model as loaded.
        rank: rank r of the update.
        alpha: its scale is ``alpha / rank``.
        dropout: on the low-rank branch's input while training.
        targets: names of the linear layers.
        fused: compute by our own product (`_LoraProduct`) instead of peft's forward.

    Raises:
        ValueError: when the model has no layer of such a name (from peft).
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers, of no use to a reader
        lm.model = get_peft_model(lm.model, config, autocast_adapter_dtype=True).get_base_model()
    for module in lm.model.modules():
        if fused and isinstance(module, PeftLinear):
            module.forward = types.MethodType(_fused_forward, module)  # type: ignore[method-assign]
    return lm


def pad(rows: Sequence[Tensor], left: bool = False) -> tuple[Tensor, Tensor]:
    """Stack rows (T_i, H) into (B, T, H) with zeros beside them, and their lengths (B,).

    On the right T is a multiple of 32: batches of few different shapes let the allocator use its memory again.
    """
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    stacked = nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_side="left" if left else "right")
    return stacked if left else F.pad(stacked, (0, 0, 0, -stacked.shape[1] % 32)), lengths


def hidden_states(lm: LanguageModel, embeds: Tensor, *layers: int, stop: bool = False) -> tuple[Tensor, ...]:
    """Final hidden states of right-padded rows, then those after the blocks ``layers`` (from 1): (B, T, H) each.

    Args:
        lm: the model; causality keeps the padding out of what is real.
        embeds: (B, T, H).
        layers: which blocks' outputs to hand out as well.
        stop: compute no further than the last of them; the first result then means nothing.

    Raises:
        ValueError: when there is no such block.
    """
    body, kept = lm.body, {}
    depth = len(body.layers)
    if wrong := [layer for layer in layers if not 1 <= layer <= depth]:
        raise ValueError(f"layer is {wrong[0]}; {lm.name} has blocks 1 to {depth}")
    hooks = [body.layers[n - 1].register_forward_hook(lambda at, _, out: kept.update({at: out})) for n in set(layers)]
    body.config.num_hidden_layers = max(layers) if stop else depth
    try:
        final = body(inputs_embeds=embeds, use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
        body.config.num_hidden_layers = depth
    return final, *(kept[body.layers[layer - 1]] for layer in layers)


def answer_loss(lm: LanguageModel, hidden: Tensor, where: Tensor, answer: Tensor) -> Tensor:
    """Mean cross-entropy over answer tokens alone; the vocabulary is never spread over the prompt.

    Args:
        lm: the model.
        hidden: final hidden states (B, T, H).
        where: flat positions (M,) into B * T, of the token before each answer token.
        answer: the answer tokens (M,).
    """
    return F.cross_entropy(lm.logits(hidden.flatten(0, 1)[where]), answer)


def generate(
    lm: LanguageModel, rows: Sequence[Tensor], end: int, limit: int = 64, batch: int = 16, prefix: Prefix | None = None
) -> list[str]:
    """Continue prompts greedily until the end token; left-padded, so a row's answer does not depend on its batch.

    Args:
        lm: the model.
        rows: input embeddings of each prompt (T_i, H).
        end: token id that ends an answer.
        limit: most new tokens.
        batch: prompts at once; rows of like length are put together.
        prefix: what all prompts begin with, when they are equally long.
    """
    return [said[0] for said in _continue(lm, rows, end, limit, batch, prefix, num_beams=1)]


def beams(
    lm: LanguageModel, rows: Sequence[Tensor], end: int, count: int, limit: int = 24, prefix: Prefix | None = None
) -> list[list[str]]:
    """The ``count`` likeliest continuations of each prompt by beam search, best first; otherwise as `generate`.

    Likelihood is a sum over tokens, not their mean: long answers get no bonus.
    """
    size = 8 if lm.embeddings.device.type == "cpu" else 64
    return _continue(lm, rows, end, limit, size, prefix, num_beams=count, num_return_sequences=count, length_penalty=0)


@torch.no_grad()
def _continue(
    lm: LanguageModel, rows: Sequence[Tensor], end: int, limit: int, batch: int, prefix: Prefix | None, **search: Any
) -> list[list[str]]:
    lm.model.eval()
    answers: list[list[str]] = [[] for _ in rows]
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    options = dict(max_new_tokens=limit, do_sample=False, eos_token_id=end, pad_token_id=end, **search)
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        embeds, lengths = pad([rows[row] for row in some], left=True)
        mask = (torch.arange(embeds.shape[1], device=embeds.device) >= embeds.shape[1] - lengths[:, None]).long()
        beams = search["num_beams"]
        read = prefix.kept(len(some) * beams) if prefix else read_once(lm.body, embeds, mask, beams)
        tokens = lm.model.generate(inputs_embeds=embeds, attention_mask=mask, **options, **read)
        texts = lm.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        for place, text in enumerate(texts):
            answers[some[place * len(some) // len(texts)]].append(text.strip().split("\n")[0].strip())
    return answers


@torch.no_grad()
def candidate_logprobs(lm: LanguageModel, rows: Sequence[Tensor], answers: Sequence[list[list[int]]]) -> Tensor:
    """Log-likelihood of each candidate answer after its prompt; the prompt is computed once for all of them.

    The answers stand behind the prompt side by side; each sees the prompt and itself, at the positions that it would
    have alone.

    Args:
        lm: the model.
        rows: input embeddings of each prompt (T_i, H).
        answers: for each prompt the token ids of its candidates, all equally many.

    Returns:
        sums of log-probabilities (B, candidates), float32.
    """
    lm.model.eval()
    tails = [[token for answer in group for token in answer[:-1]] for group in answers]
    added = [lm.embeddings[torch.tensor(tail, device=rows[0].device)] for tail in tails]
    whole = [torch.cat(pair) for pair in zip(rows, added, strict=True)]
    embeds, _ = pad(whole)
    bias, place, where, tokens, owner = _side_by_side([len(row) for row in rows], answers, embeds)
    hidden = lm.body(inputs_embeds=embeds, attention_mask=bias, position_ids=place, use_cache=False).last_hidden_state
    each = -F.cross_entropy(lm.logits(hidden.flatten(0, 1)[where]), tokens, reduction="none")
    total = torch.zeros(len(rows) * len(answers[0]), device=each.device).index_add_(0, owner, each)
    return total.view(len(rows), -1)


def _side_by_side(lengths: list[int], answers: Sequence[list[list[int]]], embeds: Tensor) -> tuple[Tensor, ...]:
    """Mask (B, 1, T, T), positions (B, T), and for each answer token: where it is predicted, its id, its candidate."""
    size, longest = embeds.shape[:2]
    segment = torch.full((size, longest), -1)  # -1: prompt or padding
    place = torch.arange(longest).repeat(size, 1)
    where, tokens, owner = [], [], []
    for row, (length, group) in enumerate(zip(lengths, answers, strict=True)):
        start = length
        for number, answer in enumerate(group):
            inner = range(start, start + len(answer) - 1)
            segment[row, inner.start : inner.stop] = number
            place[row, inner.start : inner.stop] = torch.arange(length, length + len(inner))
            where += [row * longest + length - 1, *(row * longest + spot for spot in inner)]
            tokens += answer
            owner += [row * len(group) + number] * len(answer)
            start = inner.stop
    step = torch.arange(longest)
    in_prompt = (step < torch.tensor(lengths)[:, None])[:, None, :]
    seen = (step[None, :, None] >= step) & (in_prompt | (segment[:, :, None] == segment[:, None, :]))
    bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(embeds.dtype).min)[:, None]
    placed = [torch.tensor(values) for values in (where, tokens, owner)]
    return tuple(value.to(embeds.device) for value in (bias.to(embeds.dtype), place, *placed))
