"""Attention: against torch, by each kernel, and which kernel is chosen for what."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax.models import attention as module
from nextgpt_jax.models.attention import Case, attention, choose_kernel, splash_attention
from tests.parity import relative_error

A100, H100, B200, V100 = (8, 0), (9, 0), (10, 0), (7, 0)
BF16 = jnp.dtype(jnp.bfloat16)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("kv_heads", [6, 3, 1])
@pytest.mark.parametrize("masking", ["none", "causal", "mask"])
def test_attention_matches_torch(kv_heads, masking):
    q, k, v = random(2, 5, 6, 8), random(2, 5, kv_heads, 8, seed=1), random(2, 5, kv_heads, 8, seed=2)
    mask = np.random.default_rng(3).random((2, 1, 5, 5)) > 0.4
    mask |= np.eye(5, dtype=bool)
    chosen = jnp.asarray(mask) if masking == "mask" else None
    ours = attention(*map(jnp.asarray, (q, k, v)), mask=chosen, causal=masking == "causal")
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(x).transpose(1, 2) for x in (q, k, v)),
        attn_mask=torch.from_numpy(mask) if masking == "mask" else None,
        is_causal=masking == "causal",
        enable_gqa=True,
    ).transpose(1, 2)
    assert relative_error(ours, expected) < 1e-5


@pytest.mark.parametrize("queries, keys", [(1024, 512), (800, 700)])
def test_attention_over_many_tokens(queries, keys):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, n, 3, 8), np.float32) for n in (queries, keys, keys))
    case = Case(6, queries, keys, 8, jnp.dtype(jnp.float32))
    assert choose_kernel(case, "cpu") == "blockwise"
    expected = jax.nn.dot_product_attention(q, k, v)
    np.testing.assert_allclose(attention(q, k, v), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("key_heads, width", [(2, 64), (4, 128)])
def test_the_tpu_kernel_is_attention(causal, key_heads, width):
    """Interpreted, as there is no TPU here: grouped heads, padded widths, gradients."""
    q = random(2, 256, 4, width)
    k, v = (random(2, 256, key_heads, width, seed=seed) for seed in (1, 2))

    def by_kernel(q, k, v):
        return splash_attention(q, k, v, causal=causal, interpret=True)

    def plain(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal)

    np.testing.assert_allclose(by_kernel(q, k, v), plain(q, k, v), atol=2e-5)
    found, wanted = (
        jax.grad(lambda *x, f=f: jnp.square(f(*x)).sum(), argnums=(0, 1, 2))(q, k, v) for f in (by_kernel, plain)
    )
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.parametrize("queries", [1, 4])
def test_key_lengths_hide_the_keys_after_them(queries):
    q, k, v = random(3, queries, 4, 8), random(3, 6, 2, 8, seed=1), random(3, 6, 2, 8, seed=2)
    lengths = np.array([1, 6, 4], np.int32)
    mask = (np.arange(6) < lengths[:, None])[:, None, None]
    np.testing.assert_allclose(attention(q, k, v, key_lengths=lengths), attention(q, k, v, mask=mask), atol=1e-6)
    first = attention(q[:1], k[:1, :1], v[:1, :1])
    np.testing.assert_allclose(attention(q, k, v, key_lengths=lengths)[:1], first, atol=1e-6)


# The attentions of the paper's system, 16 rows: (heads of all rows, queries, keys, width), other properties, and what
# computes them on an A100 or later.
CAUSAL, MASK, LENGTHS = {"causal": True}, {"mask": True}, {"key_lengths": True}
PAPER = {
    ("ImageBind, images", (128, 257, 257, 80)): ({}, "cudnn"),
    ("ImageBind, videos", (1920, 257, 257, 80)): ({}, "cudnn"),
    ("ImageBind, audio", (288, 229, 230, 64)): ({}, "cudnn"),
    ("ImageBind, depth", (64, 197, 198, 48)): ({}, "cudnn"),
    ("ImageBind, thermal", (96, 197, 198, 64)): ({}, "cudnn"),
    ("ImageBind, IMU", (64, 251, 252, 64)): ({}, "cudnn"),
    ("LLaMA, training and prefill", (512, 512, 512, 128)): (CAUSAL, "cudnn"),
    ("LLaMA, decode", (512, 1, 640, 128)): (LENGTHS, "cudnn"),
    ("output projection, audio", (64, 8, 8, 128)): ({}, "xla"),
    ("output projection, audio, query", (64, 1, 1, 128)): ({}, "xla"),
    ("output projection, audio, memory", (64, 1, 8, 128)): ({}, "xla"),
    ("output projection, image", (64, 4, 4, 128)): ({}, "xla"),
    ("output projection, prompt", (64, 77, 77, 128)): ({}, "xla"),
    ("output projection, image, memory", (64, 77, 4, 128)): ({}, "xla"),
    ("output projection, video", (64, 24, 24, 128)): ({}, "xla"),
    ("output projection, video, memory", (64, 77, 24, 128)): ({}, "xla"),
    ("CLAP", (96, 77, 77, 64)): (MASK, "xla"),
    ("CLIP-L", (96, 77, 77, 64)): (CAUSAL, "xla"),
    ("OpenCLIP-H", (128, 77, 77, 64)): (CAUSAL, "xla"),
    ("SD 1.5, 64 x 64", (128, 4096, 4096, 40)): ({}, "cudnn"),
    ("SD 1.5, 64 x 64, text", (128, 4096, 77, 40)): ({}, "cudnn"),
    ("SD 1.5, 32 x 32", (128, 1024, 1024, 80)): ({}, "cudnn"),
    ("SD 1.5, 32 x 32, text", (128, 1024, 77, 80)): ({}, "cudnn"),
    ("SD 1.5, 16 x 16", (128, 256, 256, 160)): ({}, "xla"),
    ("SD 1.5, 16 x 16, text", (128, 256, 77, 160)): ({}, "xla"),
    ("SD 1.5, 8 x 8", (128, 64, 64, 160)): ({}, "xla"),
    ("SD 1.5, 8 x 8, text", (128, 64, 77, 160)): ({}, "xla"),
    ("Zeroscope, time, in", (46080, 24, 24, 64)): ({}, "cudnn"),
    ("Zeroscope, 40 x 72", (240, 2880, 2880, 64)): ({}, "cudnn"),
    ("Zeroscope, 40 x 72, text", (10, 69120, 77, 64)): ({}, "cudnn"),
    ("Zeroscope, 40 x 72, time", (28800, 24, 24, 64)): ({}, "cudnn"),
    ("Zeroscope, 20 x 36", (480, 720, 720, 64)): ({}, "cudnn"),
    ("Zeroscope, 20 x 36, text", (20, 17280, 77, 64)): ({}, "cudnn"),
    ("Zeroscope, 20 x 36, time", (14400, 24, 24, 64)): ({}, "cudnn"),
    ("Zeroscope, 10 x 18", (960, 180, 180, 64)): ({}, "cudnn"),
    ("Zeroscope, 10 x 18, text", (40, 4320, 77, 64)): ({}, "cudnn"),
    ("Zeroscope, 10 x 18, time", (7200, 24, 24, 64)): ({}, "xla"),
    ("Zeroscope, 5 x 9", (960, 45, 45, 64)): ({}, "xla"),
    ("Zeroscope, 5 x 9, text", (40, 1080, 77, 64)): ({}, "cudnn"),
    ("Zeroscope, 5 x 9, time", (1800, 24, 24, 64)): ({}, "xla"),
    ("AudioLDM, 113 x 8", (128, 904, 904, 64)): ({}, "cudnn"),
    ("AudioLDM, 57 x 4", (128, 228, 228, 96)): ({}, "cudnn"),
    ("AudioLDM, 29 x 2", (128, 58, 58, 160)): ({}, "xla"),
}


@pytest.mark.parametrize("name", PAPER, ids=lambda name: name[0])
def test_kernels_of_the_paper_s_system(name):
    """Forwards and backwards: what a kernel refuses under a gradient is padded, not chosen for."""
    (heads, queries, keys, width), (more, kernel) = name[1], PAPER[name]
    case = Case(heads, queries, keys, width, BF16, **more)
    assert [choose_kernel(case, "gpu", card) for card in (A100, H100, B200)] == [kernel] * 3
    assert choose_kernel(case, "gpu", V100) == choose_kernel(case, "gpu") == "xla"  # no bfloat16 there; not CUDA


def test_float32_and_masks_are_for_xla():
    case = dict(heads=8, queries=512, keys=512, width=64)
    assert choose_kernel(Case(**case, dtype=jnp.dtype(jnp.float32)), "gpu", H100) == "xla"
    assert choose_kernel(Case(**case, dtype=BF16, mask=True), "gpu", H100) == "xla"
    assert choose_kernel(Case(**case, dtype=BF16, mask=True), "tpu") == "xla"
    assert choose_kernel(Case(**case, dtype=BF16), "tpu") == "splash"


@pytest.mark.slow
def test_the_paper_s_system_has_no_other_attentions(monkeypatch):
    from configs import nextgpt_7b
    from nextgpt_jax.aot import programs
    from nextgpt_jax.mesh import make_mesh
    from nextgpt_jax.modalities import MODALITIES, output_modalities

    seen = set()
    monkeypatch.setattr(module, "choose_kernel", lambda case, *_: seen.add(case) or "xla")
    config = nextgpt_7b.get_config("infer")
    config.model.dtype, config.data.batch_size = "bfloat16", 16
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        for stage, inputs, outputs in (("stage1", MODALITIES, ()), ("stage2", (), output_modalities())):
            config.train.stage = stage
            program = programs.training_program(config, mesh, inputs, outputs)
            program.function.trace(*program.arguments)
        for name in ("decode", *output_modalities()):
            program = programs.inference_program(config, mesh, name)
            program.function.trace(*program.arguments)
    assert seen == {Case(*sizes, BF16, **more) for (_, sizes), (more, _) in PAPER.items()}


@contextlib.contextmanager
def emulated_cudnn():
    """cuDNN by its rules, computed by XLA: what it would refuse raises."""
    plain = jax.nn.dot_product_attention

    def attend(q, k, v, *, implementation=None, **options):
        def compute(q, k, v):
            return plain(q, k, v, **options)

        if implementation != "cudnn":
            return compute(q, k, v)
        assert q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128

        def forward(q, k, v):
            if q.shape[1] % 2 or k.shape[1] % 2:
                raise NotImplementedError(f"Unsupported sequence length Q {q.shape[1]}, KV {k.shape[1]}.")
            return jax.vjp(compute, q, k, v)

        computed = jax.custom_vjp(compute)
        computed.defvjp(forward, lambda pull, gradient: pull(gradient))
        return computed(q, k, v)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.nn, "dot_product_attention", attend)
        patch.setattr(module, "choose_kernel", lambda *_: "cudnn")
        yield


@settings(max_examples=20)  # each shape is compiled
@given(
    sizes=st.tuples(*(st.integers(1, n) for n in (3, 9, 9, 2, 3, 20))),
    seen=st.sampled_from([{}, CAUSAL, LENGTHS]),
    seed=st.integers(0, 99),
)
def test_what_cudnn_refuses_is_padded(sizes, seen, seed):
    b, t, s, groups, heads, width = sizes
    rng = np.random.default_rng(seed)
    q, k, v = (
        jnp.asarray(rng.normal(size=(b, n, h, width)), BF16) for n, h in ((t, groups * heads), (s, heads), (s, heads))
    )
    options = {"key_lengths": jnp.asarray(rng.integers(1, s + 1, b))} if seen is LENGTHS else dict(seen)

    def value_and_gradient(*qkv):
        def loss(*qkv):
            y = attention(*qkv, **options)
            return jnp.square(y.astype(jnp.float32)).sum(), y

        gradients, y = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*qkv)
        return [y, *gradients]

    with emulated_cudnn():
        found = jax.jit(lambda *qkv: value_and_gradient(*qkv))(q, k, v)
    expected = jax.jit(value_and_gradient)(*(x.astype(jnp.float32) for x in (q, k, v)))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == BF16 and one.shape == other.shape
        np.testing.assert_allclose(one.astype(jnp.float32), other, atol=0.03 * max(1.0, float(jnp.abs(other).max())))


def test_cuda_capabilities_by_kind_of_device():
    assert module.targets() == {"cpu": (0, 0)}
    kinds = {"NVIDIA H100 80GB HBM3": H100, "NVIDIA A100-SXM4-80GB": A100, "NVIDIA H200": H100, "NVIDIA B200": B200}
    assert {kind: module._capability(kind) for kind in kinds} == kinds
    assert module._capability("AMD Instinct MI300X") == (0, 0)


def test_a_process_with_several_platforms_compiles_for_each_its_own(monkeypatch):
    """Without a mesh the choice is made when the program is lowered."""
    monkeypatch.setattr(module, "targets", lambda: {"cpu": (0, 0), "tpu": (0, 0)})
    q = random(1, 1024, 2, 8)
    expected = jax.nn.dot_product_attention(q, q, q)
    np.testing.assert_allclose(jax.jit(attention)(q, q, q), expected, rtol=1e-4, atol=1e-5)
    exported = jax.export.export(jax.jit(attention), platforms=["tpu"])(q, q, q).mlir_module()
    assert "tpu_custom_call" in exported
    assert "tpu_custom_call" not in jax.jit(attention).lower(q, q, q).as_text()
