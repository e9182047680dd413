"""Losses: slots are encoded where they are used, chunk by chunk, and logits for a chunk of positions at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextgpt_jax.training import losses


@pytest.mark.parametrize("b, m", [(1, 1), (3, 2), (5, 4)])
def test_valid_slots_are_encoded_and_others_are_zero(b, m):
    """Also with more slots than a chunk has."""
    rng = np.random.default_rng(b)
    x, valid = rng.normal(size=(b, m, 3)).astype(np.float32), rng.random((b, m)) < 0.5
    found = jax.jit(lambda x, valid: losses.encode_valid(lambda x: jnp.stack([x, 2 * x], 1), x, valid))(x, valid)
    np.testing.assert_allclose(found, np.stack([x, 2 * x], 2) * valid[..., None, None])


def test_empty_chunks_are_skipped():
    calls = []

    def encode(x):
        jax.debug.callback(lambda: calls.append(1))
        return x

    x, valid = jnp.ones((40, 1, 2)), np.zeros((40, 1), bool)
    for count, expected in ((0, 0), (1, 1), (9, 2), (40, 5)):
        calls.clear()
        valid[:count] = True
        jax.block_until_ready(jax.jit(lambda x, valid: losses.encode_valid(encode, x, valid))(x, valid))
        jax.effects_barrier()
        assert len(calls) == expected, count


def test_encoders_get_no_gradient():
    def total(x):
        return losses.encode_valid(lambda x: x**2, x, np.ones((2, 2), bool)).sum()

    assert not jax.grad(total)(jnp.ones((2, 2, 3))).any()


def test_counts_leave_out_the_first_token_and_empty_slots():
    batch = {
        "loss_mask": np.array([[True, True, False], [False, False, True]]),
        "signals": {"image": {"mask": np.array([[True, False], [False, False]])}},
    }
    assert losses.target_counts(batch) == {"tokens": 2, "image": 1}


class Head:
    """As much of a model as next_token_losses needs: logits are linear in the hidden states."""

    def __init__(self, base: int, new: int, width: int):
        rng = np.random.default_rng(0)
        self.kernel = jnp.asarray(rng.normal(size=(width, base + new)), jnp.float32)
        self.base, self.llm, self.config = base, self, self
        self.vocabulary = type("Vocabulary", (), {"size": base + new})

    def head(self):
        return self.kernel[:, : self.base]

    def new_logits(self, hidden):
        return hidden @ self.kernel[:, self.base :]


@pytest.mark.parametrize("limit", [1, 2**28])
def test_next_token_losses_in_chunks(monkeypatch, limit):
    monkeypatch.setattr(losses, "LOGITS_BYTES", limit)
    model, rng = Head(base=20, new=6, width=4), np.random.default_rng(1)
    hidden = jnp.asarray(rng.normal(size=(3, 37, 4)), jnp.float32)
    tokens, mask = rng.integers(0, 26, (3, 37)), rng.random((3, 37)) < 0.7
    logits = hidden[:, :-1] @ model.kernel
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1)[..., 0]
    expected = -(chosen * mask[:, 1:]).sum(1), ((logits.argmax(-1) == tokens[:, 1:]) * mask[:, 1:]).sum(1)
    found = losses.next_token_losses(model, hidden, jnp.asarray(tokens), jnp.asarray(mask))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
