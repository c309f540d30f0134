"""A chunk of tokens after the other gives the loss and the gradients of all logits at once, and never holds them all."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.shape_only import LiveBytes
from syvla.modeling_syvla import chunked_cross_entropy
from syvla.modeling_syvla.chunked_cross_entropy import token_losses

TOKENS, WIDTH, VOCABULARY = 23, 16, 301


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(VOCABULARY, WIDTH, generator=generator))
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, requires_grad=True)
    target = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    weights = torch.rand(
        TOKENS, generator=generator
    )  # every token's loss counts differently, as a divisor per sample does
    return head, hidden, target, weights


@pytest.fixture
def chunks_of(monkeypatch):
    def set_rows(rows):
        monkeypatch.setattr(chunked_cross_entropy, "LOGITS_AT_ONCE", rows * VOCABULARY)
        monkeypatch.setattr(chunked_cross_entropy, "VOCABULARY_AT_ONCE", 100)

    return set_rows


def gradients(head, hidden, target, weights, losses):
    wanted = [x for x in (hidden, head.weight) if x.requires_grad]
    return torch.autograd.grad((losses(head, hidden, target) * weights).sum(), wanted)


def plain(head, hidden, target):
    return F.cross_entropy(head(hidden).float(), target, reduction="none")


@pytest.mark.parametrize("rows", [1, 7, 22])
@pytest.mark.parametrize("trained", ["both", "hidden", "head"])
def test_losses_and_gradients_are_those_of_all_logits_at_once(case, chunks_of, rows, trained):
    head, hidden, target, weights = case
    head.weight.requires_grad_(trained != "hidden")
    hidden.requires_grad_(trained != "head")
    expected = gradients(head, hidden, target, weights, plain)
    chunks_of(rows)
    losses = token_losses(head, hidden, target)
    assert "ChunkedCrossEntropy" in type(losses.grad_fn).__name__
    torch.testing.assert_close(losses, plain(head, hidden, target), atol=1e-5, rtol=1e-6)
    for found, right in zip(gradients(head, hidden, target, weights, token_losses), expected, strict=True):
        torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [5])
def test_in_bfloat16_it_is_no_further_from_float64_than_the_plain_one(case, chunks_of, rows):
    head, hidden, target, weights = case
    exact = gradients(head.double(), hidden.double().detach().requires_grad_(), target, weights.double(), plain)
    head.float()
    chunks_of(rows)

    def error(losses):
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(head, hidden, target, weights, losses)
        assert [x.dtype for x in found] == [torch.float32] * 2
        return [float((x.double() - right).norm()) for x, right in zip(found, exact, strict=True)]

    for ours, theirs in zip(error(token_losses), error(plain), strict=True):
        assert ours <= 1.1 * theirs


def test_a_trained_head_goes_by_chunks_where_the_logits_outweigh_its_own_gradient(chunks_of):
    chunks_of(2)
    head, target = nn.Linear(16, VOCABULARY, bias=False), torch.arange(9)

    def by_chunks(tokens):
        losses = token_losses(head, torch.randn(tokens, 16, requires_grad=True), target[:tokens])
        return "ChunkedCrossEntropy" in type(losses.grad_fn).__name__

    assert [by_chunks(tokens) for tokens in (2, 8, 9)] == [False, False, True]
    head.weight.requires_grad_(False)
    assert [by_chunks(tokens) for tokens in (2, 3)] == [False, True]


def test_without_gradients_and_without_tokens(case, chunks_of):
    head, hidden, target, _ = case
    chunks_of(4)
    with torch.no_grad():
        torch.testing.assert_close(token_losses(head, hidden, target), plain(head, hidden, target))
    assert token_losses(head, hidden[:0], target[:0]).shape == (0,)


def test_a_head_that_is_no_plain_layer_is_called(case, chunks_of):
    """An adapter on the head changes the loss, so its forward must run."""
    head, hidden, target, _ = case
    chunks_of(4)

    class Adapted(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    adapted = Adapted(WIDTH, VOCABULARY, bias=False)
    adapted.load_state_dict(head.state_dict())
    torch.testing.assert_close(token_losses(adapted, hidden, target), plain(adapted, hidden, target))
    biased = nn.Linear(WIDTH, VOCABULARY)
    torch.testing.assert_close(token_losses(biased, hidden, target), plain(biased, hidden, target))


def test_it_never_holds_the_logits_of_all_tokens(chunks_of, monkeypatch):
    """Counted by the bytes of live tensors, forward and backward: a few chunks instead of a few times all logits."""
    tokens, width, vocabulary, rows = 256, 8, 4096, 16
    head = nn.Linear(width, vocabulary, bias=False)
    hidden, target = torch.randn(tokens, width, requires_grad=True), torch.arange(tokens)

    def peak(losses):
        with LiveBytes() as live:
            live.add(head.weight, hidden, target)
            before = live.now
            losses(head, hidden, target).sum().backward()
            return live.peak - before

    whole, chunk = tokens * vocabulary * 4, rows * vocabulary * 4
    monkeypatch.setattr(chunked_cross_entropy, "LOGITS_AT_ONCE", rows * vocabulary)
    assert peak(plain) >= 2 * whole
    assert peak(token_losses) <= 5 * chunk


def test_the_models_loss_and_gradients_stay(make_model, tiny_processor, make_item, make_chat, monkeypatch):
    """Mixed batch in training mode, tied and untied weights as the tiny model has them; every token a chunk of its own."""
    batch = tiny_processor.collate(
        [make_item(1, thought="reach the red cube"), make_chat(2, answer="one two three " * 30), make_item(3)]
    )
    generator = torch.Generator().manual_seed(1)
    batch["noise"], batch["timestep"] = torch.randn(3, 8, 14, generator=generator), torch.rand(3, generator=generator)

    def step(at_once):
        monkeypatch.setattr(chunked_cross_entropy, "LOGITS_AT_ONCE", at_once)
        model = make_model().train()
        called = []
        model.vlm.lm_head.register_forward_hook(lambda *_: called.append(1))
        output = model(**batch)
        output.loss.backward()
        return called, output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    (called, whole, expected), (left, parts, found) = step(2**25), step(1)
    assert called
    assert not left, "the chunks take the weight itself"
    torch.testing.assert_close(parts.lm_loss_sums, whole.lm_loss_sums, atol=1e-5, rtol=1e-6)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
