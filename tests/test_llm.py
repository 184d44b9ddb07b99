"""The language model's hot path, each piece against an independent way to the same number."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recnb import llm


@pytest.fixture(scope="module")
def plain():
    """The embedded model in float32, as loaded."""
    return llm.load(dtype=torch.float32)


def tuned(**options):
    """A copy with LoRA whose B is no longer zero."""
    torch.manual_seed(1)
    lm = llm.add_lora(llm.load(dtype=torch.float32), **options)
    with torch.no_grad():
        for name, value in lm.model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.02)
    return lm


@pytest.fixture(scope="module")
def fused():
    return tuned()


@pytest.fixture(scope="module")
def peft():
    return tuned(fused=False)


def embedded(lm, *texts):
    return [lm.embeddings[torch.tensor(lm.tokenizer(text)["input_ids"])].detach() for text in texts]


def test_the_embedded_model_is_smollm2_and_speaks(plain):
    config = plain.model.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
    assert not any(value.requires_grad for value in plain.model.parameters())
    (answer,) = llm.generate(
        plain, embedded(plain, "The capital of France is"), plain.tokenizer("\n")["input_ids"][0], 4
    )
    assert "Paris" in answer


def test_an_unknown_model_gives_one_clear_line():
    with pytest.raises(OSError, match="no language model './nowhere'"):
        llm.load("./nowhere")


def test_a_model_in_a_folder_is_loaded_by_the_same_function(plain, tmp_path):
    import transformers

    small = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(small).save_pretrained(tmp_path)
    plain.tokenizer.save_pretrained(tmp_path)
    lm = llm.add_lora(llm.load(str(tmp_path)))
    final, inner = llm.hidden_states(lm, torch.zeros(1, 3, 32, dtype=lm.embeddings.dtype), 1)
    assert final.shape == inner.shape == (1, 3, 32)
    with pytest.raises(ValueError, match="blocks 1 to 2"):
        llm.hidden_states(lm, torch.zeros(1, 3, 32, dtype=lm.embeddings.dtype), 3)


def test_the_fused_product_has_peft_s_output_and_gradients(fused, peft):
    grads = []
    for lm in (fused, peft):
        lm.model.eval()  # no dropout
        embeds = torch.stack(embedded(lm, "one two three four five")).requires_grad_()
        out = llm.hidden_states(lm, embeds, 20)[0]
        out.pow(2).mean().backward()
        found = {name: value.grad.clone() for name, value in lm.model.named_parameters() if value.grad is not None}
        grads.append((out.detach(), embeds.grad, found))
        lm.model.zero_grad()
    (ours, ours_in, ours_all), (theirs, theirs_in, theirs_all) = grads
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert torch.allclose(ours_in, theirs_in, rtol=1e-2, atol=1e-5)
    assert len(ours_all) == len(theirs_all) == 30 * 7 * 2
    for name, value in ours_all.items():
        assert torch.allclose(value, theirs_all[name], rtol=1e-2, atol=1e-5 + 1e-3 * float(value.abs().max())), name


def test_dropout_falls_on_the_branch_only_while_training(fused):
    layer = fused.body.layers[0].mlp.up_proj
    x = torch.randn(4, 576)
    layer.eval()
    still = layer(x)
    assert torch.equal(still, layer(x))
    layer.train()
    torch.manual_seed(0)
    mean = torch.stack([layer(x) for _ in range(400)]).mean(0)
    layer.eval()
    assert not torch.equal(layer.train()(x), still)
    assert torch.allclose(mean, still, atol=0.1 * float((still - layer.base_layer(x)).abs().max()) + 1e-4)


def test_answer_loss_is_the_cross_entropy_of_the_answer_alone(fused):
    fused.model.eval()
    row = embedded(fused, "The movie is Toy Story")[0]
    other = embedded(fused, "a much longer row that only serves to pad the first one")[0]
    answer = torch.tensor(fused.tokenizer(" Toy Story")["input_ids"])
    embeds, lengths = llm.pad([row, other])
    hidden, _ = llm.hidden_states(fused, embeds, 1)
    first = int(lengths[0]) - len(answer)
    got = llm.answer_loss(fused, hidden, torch.arange(first - 1, first - 1 + len(answer)), answer)
    logits = fused.model(inputs_embeds=row[None]).logits[0]
    assert torch.allclose(got, F.cross_entropy(logits[first - 1 : -1], answer), atol=1e-3)


def test_answers_do_not_depend_on_the_batch(fused):
    texts = [
        "The capital of Italy is",
        "In the long history of film the best known director of all was surely",
        "A, B, C,",
    ]
    end = fused.tokenizer("\n")["input_ids"][0]
    rows = embedded(fused, *texts)
    together = llm.generate(fused, rows * 3, end, 8, batch=9)
    alone = llm.generate(fused, rows, end, 8, batch=1)
    assert together == alone * 3


def test_beams_read_a_prompt_once_and_find_the_same(fused, monkeypatch):
    rows = embedded(fused, "The capital of Italy is", "My three favourite films of all times are Fargo,", "A, B, C,")
    found = llm.beams(fused, rows, fused.tokenizer.eos_token_id, 3, 6)
    monkeypatch.setattr(llm, "read_once", lambda *given: {})  # as transformers does it, every beam by itself
    assert found == llm.beams(fused, rows, fused.tokenizer.eos_token_id, 3, 6)
    assert all(len(set(lines)) == 3 for lines in found)


def test_candidates_side_by_side_score_as_each_one_alone(fused):
    rows = embedded(fused, "My favourite film is", "The next movie that this user will watch is the")
    names = [["Toy Story", "M", "The Usual Suspects"], ["Fargo", "The Birds", "Heat"]]
    answers = [[fused.tokenizer(f" {name}\n")["input_ids"] for name in group] for group in names]
    got = llm.candidate_logprobs(fused, rows, answers)
    for row, group, scores in zip(rows, answers, got, strict=True):
        for answer, score in zip(group, scores, strict=True):
            whole = torch.cat([row, fused.embeddings[torch.tensor(answer[:-1])]])
            logs = F.log_softmax(fused.model(inputs_embeds=whole[None]).logits[0, len(row) - 1 :].float(), -1)
            assert abs(float(logs[np.arange(len(answer)), answer].sum()) - float(score)) < 2e-3
