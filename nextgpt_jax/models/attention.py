"""Scaled dot-product attention: one function, and the table of kernels that it chooses from.

Legend of shape comments: B batch, T queries, S keys, H query heads, K key/value heads, d head width.
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.extend import backend
from jaxtyping import Array, Bool, Float, Int

from nextgpt_jax import chips
from nextgpt_jax.mesh import mesh_device
from nextgpt_jax.sharding import shard_map_attention


@dataclasses.dataclass(frozen=True)
class Case:
    """What is known of an attention when its program is traced, for the choice of a kernel."""

    heads: int  # of queries, in all rows
    queries: int
    keys: int
    width: int  # of a head
    dtype: jnp.dtype
    groups: bool = False  # several query heads share a key/value head
    causal: bool = False
    mask: bool = False  # any mask
    key_lengths: bool = False  # keys beyond a length of each row are hidden

    @classmethod
    def of(cls, q: Array, k: Array, *, causal=False, mask=None, key_lengths=None) -> "Case":
        """That of `attention` called with these arguments."""
        return cls(
            heads=q.shape[0] * q.shape[2],
            queries=q.shape[1],
            keys=k.shape[1],
            width=q.shape[3],
            dtype=jnp.dtype(q.dtype),
            groups=q.shape[2] != k.shape[2],
            causal=causal,
            mask=mask is not None,
            key_lengths=key_lengths is not None,
        )

    @property
    def head_scores(self) -> int:
        """Scores of a head, computed in tiles of at least 64 queries."""
        return max(self.queries, 64) * self.keys

    @property
    def scores(self) -> int:
        """Scores of all heads of all rows, which plain XLA stores."""
        return self.heads * self.queries * self.keys


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Which cases a kernel takes, and how many scores, of a head or in all, make it worth taking."""

    name: str
    platform: str
    min_head_scores: int = 0
    min_scores: float = math.inf
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    max_width: int | None = None
    block: int = 1  # queries and keys are multiples of this
    groups: bool = True
    causal: bool = True
    key_lengths: bool = False
    min_capability: tuple[int, int] = (0, 0)  # of a CUDA device

    def takes(self, case: Case, capability: tuple[int, int]) -> bool:
        """Whether this kernel computes `case` on a device of this CUDA compute capability, faster than plain XLA."""
        return (
            not case.mask
            and (case.head_scores >= self.min_head_scores or case.scores >= self.min_scores)
            and case.dtype.name in self.dtypes
            and (self.max_width is None or case.width <= self.max_width)
            and case.queries % self.block == 0
            and case.keys % self.block == 0
            and (self.groups or not case.groups)
            and (self.causal or not case.causal)
            and (self.key_lengths or not case.key_lengths)
            and capability >= self.min_capability
        )


# The first kernel of a platform that takes a case computes it, or else plain XLA does.
KERNELS = (
    # jax.nn.dot_product_attention(implementation="cudnn"). Its rules (jax/_src/cudnn/fused_attention_stablehlo.py):
    # half precision, Ampere or later, widths of multiples of 8 up to 128 (256 on Hopper, no faster than XLA where that
    # occurs here: 0.110 against 0.115 ms for 256 tokens of width 160 on an H200). Other widths and, under a gradient,
    # odd lengths are padded below. Padding 40 and 80 on to 64 and 128 took 0.66 to 1.17 times as long, as runs of one
    # kernel differed too. For few scores XLA is as fast, and each shape costs time to compile.
    Kernel(
        "cudnn",
        "gpu",
        min_head_scores=128 * 128,
        min_scores=2**22,  # 16 MB in float32
        dtypes=("bfloat16", "float16"),
        max_width=128,
        key_lengths=True,
        min_capability=(8, 0),
    ),
    # jax.experimental.pallas.ops.tpu.splash_attention: blocks of 128 tokens.
    Kernel("splash", "tpu", block=128),
    # Below: 6 times as fast as XLA at 4096 tokens on two cores.
    Kernel("blockwise", "cpu", min_head_scores=2**19, groups=False, causal=False),
)


def choose_kernel(case: Case, platform: str, capability: tuple[int, int] = (0, 0)) -> str:
    """The name in KERNELS of the kernel for `case`, or "xla". capability: of a CUDA device."""
    kernels = (k for k in KERNELS if k.platform == platform and k.takes(case, capability))
    return next((kernel.name for kernel in kernels), "xla")


def attention(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s k d"],
    v: Float[Array, "b s k d"],
    *,
    mask: Bool[Array, "#b _ #t #s"] | None = None,
    causal: bool = False,
    key_lengths: Int[Array, " b"] | None = None,
) -> Float[Array, "b t h d"]:
    """Scaled dot-product attention, softmax in float32; fewer key/value than query heads share them in groups.

    The kernel is chosen by the devices of the mesh in use or, without one, by the platform that the program is lowered
    for. Numerics are those of torch's scaled_dot_product_attention.

    Args:
      mask: True where attention is allowed.
      causal: query i sees the keys 0 .. i.
      key_lengths: each row sees the first that many keys, at least 1.
    """
    case = Case.of(q, k, causal=causal, mask=mask, key_lengths=key_lengths)
    kernels = {platform: choose_kernel(case, platform, found) for platform, found in targets().items()}
    computations = {
        "xla": functools.partial(_xla, causal=causal),
        "cudnn": functools.partial(_cudnn, causal=causal),
        "splash": functools.partial(_splash, causal=causal),
        "blockwise": _blockwise,
    }
    arguments = (q, k, v, mask, key_lengths)
    if len(set(kernels.values())) == 1:
        return computations[kernels.popitem()[1]](*arguments)
    branches = {"cuda" if name == "gpu" else name: computations[kernel] for name, kernel in kernels.items()}
    return jax.lax.platform_dependent(*arguments, **branches, default=computations["xla"])


def targets() -> dict[str, tuple[int, int]]:
    """The platforms that the program may be compiled for, with their CUDA compute capability."""
    if device := mesh_device():
        return {device.platform: _capability(device.device_kind)}
    return {device.platform: _capability(device.device_kind) for device in _devices()}


def _devices() -> list[jax.Device]:
    """A device of each kind that this process has."""
    return list({d.device_kind: d for client in backend.backends().values() for d in client.local_devices()}.values())


@functools.cache
def _capability(kind: str) -> tuple[int, int]:
    """The CUDA compute capability of a kind of device: that of the table of chips, or of the devices here."""
    chip = chips.chip(kind)
    if chip and chip.capability:
        return chip.capability
    found = [getattr(device, "compute_capability", "") for device in _devices() if device.device_kind == kind]
    parts = re.fullmatch(r"(\d+)\.(\d+)", str(found[0])) if found else None
    return (int(parts[1]), int(parts[2])) if parts else (0, 0)


def _xla(q, k, v, mask, key_lengths, *, causal):
    if q.shape[1] == 1 and mask is None and key_lengths is not None:
        return _single_query(q, k, v, key_lengths)
    if key_lengths is not None:
        seen = jnp.arange(k.shape[1]) < key_lengths[:, None, None, None]  # [B, 1, 1, S]
        mask = seen if mask is None else mask & seen
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)


def _single_query(q, k, v, key_lengths):
    """A step of decoding. Keys are not repeated for groups of heads: on two cores 2.8 times as fast as jax.nn's."""
    b, _, h, d = q.shape
    groups = q.reshape(b, k.shape[2], -1, d)
    scores = jnp.einsum("bkgd,bskd->bkgs", groups, k, preferred_element_type=jnp.float32) * d**-0.5
    seen = jnp.arange(k.shape[1]) < key_lengths[:, None, None, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), -1).astype(v.dtype)
    return jnp.einsum("bkgs,bskd->bkgd", weights, v).reshape(b, 1, h, d)


def _cudnn(q, k, v, mask, key_lengths, *, causal):
    """Each device makes a call for its rows and heads: JAX's own rule for dividing calls fails on meshes with fsdp."""
    width = q.shape[-1]
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -width % 8))) for x in (q, k, v))
    even = q.shape[1] % 2 == k.shape[1] % 2 == 0
    local = functools.partial(_cudnn_call if even else _cudnn_odd, causal, width**-0.5)
    return shard_map_attention(local, (q, k, v), key_lengths)[..., :width]


def _cudnn_call(causal, scale, q, k, v, key_lengths=None, even=False):
    """`even`: odd numbers of queries and keys are padded, and what is padded is hidden."""
    (b, t), s = q.shape[:2], k.shape[1]
    padded = even and (t % 2 or s % 2)
    query_lengths = None
    if key_lengths is not None or padded:
        query_lengths = jnp.full(b, t, jnp.int32)
        key_lengths = jnp.full(b, s, jnp.int32) if key_lengths is None else key_lengths.astype(jnp.int32)
    if padded:
        q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    return jax.nn.dot_product_attention(
        q, k, v,
        scale=scale,
        is_causal=causal,
        query_seq_lengths=query_lengths,
        key_value_seq_lengths=key_lengths,
        implementation="cudnn",
    )[:, :t]  # fmt: skip


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cudnn_odd(causal, scale, q, k, v, key_lengths=None):
    """JAX refuses odd lengths under a gradient: it means those with a bias, but counts its placeholder for none."""
    return _cudnn_call(causal, scale, q, k, v, key_lengths)


def _cudnn_odd_forward(causal, scale, q, k, v, key_lengths=None):
    return jax.vjp(lambda *qkv: _cudnn_call(causal, scale, *qkv, key_lengths, even=True), q, k, v)


def _cudnn_odd_backward(causal, scale, pull, gradient):
    return (*pull(gradient), None)


_cudnn_odd.defvjp(_cudnn_odd_forward, _cudnn_odd_backward)


def _splash(q, k, v, mask, key_lengths, *, causal):
    return splash_attention(q, k, v, causal=causal)


def splash_attention(q, k, v, *, causal: bool, interpret: bool = False):
    """Attention by the Pallas kernel "splash" for TPUs, which skips the blocks that a causal mask empties.

    Compiled kernels cannot be partitioned, so each device runs it on its rows and heads. q: [B, T, H, d];
    k, v: [B, S, K, d]; T and S are multiples of 128. interpret: run on any platform, for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    t, s, width = q.shape[1], k.shape[1], q.shape[-1]
    q = q * jnp.asarray(width**-0.5, q.dtype)
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -width % 128))) for x in (q, k, v))  # the lanes of a register

    def local(q, k, v):
        heads, groups = k.shape[2], q.shape[2] // k.shape[2]
        mask = (masks.CausalMask if causal else masks.FullMask)((t, s))
        sizes = splash.BlockSizes(
            **dict.fromkeys(("block_q", "block_q_dkv", "block_q_dq"), _block(t)),
            **dict.fromkeys(("block_kv", "block_kv_compute", "block_kv_dkv", "block_kv_dkv_compute"), _block(s)),
            block_kv_dq=_block(s),
        )
        kernel = splash.make_splash_mqa_single_device(
            masks.MultiHeadMask([mask] * groups), block_sizes=sizes, interpret=interpret
        )
        q = rearrange(q, "b t (k g) d -> b k g t d", k=heads)
        y = jax.vmap(jax.vmap(kernel))(q, k.swapaxes(1, 2), v.swapaxes(1, 2))
        return rearrange(y, "b k g t d -> b t (k g) d")

    return shard_map_attention(local, (q, k, v))[..., :width]


def _block(n: int) -> int:
    return next(block for block in (512, 256, 128) if n % block == 0)


_QUERY_BLOCK = 512


def _blockwise(q, k, v, mask, key_lengths):
    """One head and one block of queries at a time, so that scores are made and used while they are in the cache."""
    b, t, h, d = q.shape
    block = max((n for n in range(64, _QUERY_BLOCK + 1) if t % n == 0), default=t)

    def head(qkv):
        q, k, v = qkv  # [T, d], [S, d], [S, d]

        def rows(q):
            scores = (q @ k.T).astype(jnp.float32)
            weights = jnp.exp(scores - scores.max(-1, keepdims=True))
            return ((weights.astype(v.dtype) @ v) / weights.sum(-1, keepdims=True)).astype(q.dtype)

        return jax.lax.map(rows, q.reshape(-1, block, d)).reshape(t, d)

    by_head = (rearrange(x, "b t h d -> (b h) t d") for x in (q * d**-0.5, k, v))
    return rearrange(jax.lax.map(head, tuple(by_head)), "(b h) t d -> b t h d", b=b)
