"""Tier 1: ImageBind (Girdhar et al. 2023). Six modalities in; one embedding space out.

Matches the ImageBindModel that NExT-GPT uses: a modality is a stem that makes tokens, a pre-norm transformer trunk and
a head. Legend of shape comments: B batch, V views, T tokens, D width of the trunk, E width of the shared space.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.models import hf_config
from nextgpt_jax.models.attention import attention
from nextgpt_jax.models.layers import Conv, Embedding, LayerNorm, Linear, gelu
from nextgpt_jax.models.rngs import draw
from nextgpt_jax.models.stacking import scan_layers, stack
from nextgpt_jax.sharding import LARGEST_DIM, LARGEST_DIM_PER_LAYER

BRANCHES = ("vision", "text", "audio", "depth", "thermal", "imu")
RELEASED_FILE = "imagebind_huge.pth"
IMU_SHAPE = (6, 2000)  # accelerometer and gyroscope: channels, samples of one recording

SHARDING = ((r"towers\.\w+\.trunk\.blocks\..*", LARGEST_DIM_PER_LAYER), (r"towers\..*", LARGEST_DIM))
_SIZES = ("embed_dim", "num_blocks", "num_heads")
_EPS = 1e-6  # of every LayerNorm here but those of the stems
_STEM_EPS = 1e-5
_MAX_LOGIT_SCALE = 100.0
_LOGIT_SCALES = {"depth": 5.0, "thermal": 10.0, "imu": 5.0}  # never learned: buffers of the original
_BIAS_KV = ("audio", "depth", "thermal", "imu")
_HEAD_DROPOUT = {"imu": 0.5}


@dataclasses.dataclass(frozen=True)
class ImageBindConfig:
    """Fields named as the arguments of the original's constructor, with the published model's values.

    `modalities` are the towers that exist; the fields of the others mean nothing. The last fields say how media are
    cut into the views whose embeddings are averaged.
    """

    out_embed_dim: int
    modalities: tuple[str, ...] = BRANCHES
    vision_embed_dim: int = 1280
    vision_num_blocks: int = 32
    vision_num_heads: int = 16
    kernel_size: tuple[int, int, int] = (2, 14, 14)  # of the vision stem: frames, height, width
    video_frames: int = 2
    image_size: int = 224  # pixels, of depth and thermal maps too
    text_embed_dim: int = 1024
    text_num_blocks: int = 24
    text_num_heads: int = 16
    text_vocab_size: int = 49408
    text_context_length: int = 77
    audio_embed_dim: int = 768
    audio_num_blocks: int = 12
    audio_num_heads: int = 12
    audio_kernel_size: int = 16
    audio_stride: int = 10
    audio_num_mel_bins: int = 128
    audio_target_len: int = 204  # frames of the spectrogram of one clip
    audio_drop_path: float = 0.1
    depth_embed_dim: int = 384
    depth_num_blocks: int = 12
    depth_num_heads: int = 8
    depth_kernel_size: int = 16
    depth_drop_path: float = 0.0
    thermal_embed_dim: int = 768
    thermal_num_blocks: int = 12
    thermal_num_heads: int = 12
    thermal_kernel_size: int = 16
    thermal_drop_path: float = 0.0
    imu_embed_dim: int = 512
    imu_num_blocks: int = 6
    imu_num_heads: int = 8
    imu_kernel_size: int = 8
    imu_drop_path: float = 0.7
    video_clips: int = 5
    video_crops: int = 3
    audio_clips: int = 3
    clip_seconds: float = 2.0  # of a video's or an audio's clip

    def __post_init__(self):
        if unknown := [name for name in self.modalities if name not in BRANCHES]:
            raise ValueError(f"modalities {unknown} are not supported (only {', '.join(BRANCHES)})")
        if not self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"modalities must be named once each, at least one: got {list(self.modalities)}")
        for name in self.modalities:
            width, blocks, heads = self.sizes(name)
            if min(width, blocks, heads) < 1:
                raise ValueError(f"{name}: width, blocks and heads must be at least 1, got {width}, {blocks}, {heads}")
            if width % heads:
                raise ValueError(f"{name}: width {width} does not divide into {heads} heads")
            if not 0.0 <= self.drop_path(name) < 1.0:
                raise ValueError(f"{name}_drop_path must be in [0, 1), got {self.drop_path(name)}")
        self._check_patches()
        for name in ("video_clips", "video_crops", "audio_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.clip_seconds <= 0:
            raise ValueError(f"clip_seconds must be positive, got {self.clip_seconds}")

    def _check_patches(self):
        pixels = self.image_size
        if "vision" in self.modalities:
            if len(self.kernel_size) != 3:
                raise ValueError(f"kernel_size must be frames, height, width, got {list(self.kernel_size)}")
            for size, kernel in zip((self.video_frames, pixels, pixels), self.kernel_size, strict=True):
                if kernel < 1 or size % kernel:
                    raise ValueError(f"a clip of {self.video_frames} frames of {pixels} pixels does not divide "
                                     f"into patches {self.kernel_size}")  # fmt: skip
        for name, size in (("depth", pixels), ("thermal", pixels), ("imu", IMU_SHAPE[1])):
            kernel = getattr(self, f"{name}_kernel_size")
            if name in self.modalities and (kernel < 1 or size % kernel):
                raise ValueError(f"{name}: {size} does not divide into patches of {kernel}")
        mels, frames, kernel = self.audio_num_mel_bins, self.audio_target_len, self.audio_kernel_size
        if "audio" in self.modalities and (min(mels, frames) < kernel or min(kernel, self.audio_stride) < 1):
            raise ValueError(
                f"audio: patches of {kernel} every {self.audio_stride} do not fit a {mels} x {frames} spectrogram"
            )

    @property
    def media_branches(self) -> tuple[str, ...]:
        """The towers that read media: all but text, which the language model reads."""
        return tuple(name for name in self.modalities if name != "text")

    def num_embeddings(self, modality: str) -> int:
        """Embeddings of one medium of a modality: always 1."""
        return 1

    @property
    def num_patches(self) -> int:
        """Patches of an image or clip."""
        frames, height, width = self.kernel_size
        return self.video_frames // frames * (self.image_size // height) * (self.image_size // width)

    def sizes(self, modality: str) -> tuple[int, int, int]:
        """Width, number of blocks and number of heads of a trunk."""
        width, blocks, heads = (getattr(self, f"{modality}_{field}") for field in _SIZES)
        return width, blocks, heads

    def drop_path(self, modality: str) -> float:
        """The rate at which the last block's branches are dropped in training."""
        return getattr(self, f"{modality}_drop_path", 0.0)

    def input_shape(self, modality: str) -> tuple[int, ...]:
        """Shape of one preprocessed medium, by the branch that reads its modality (see modalities.py).

        vision: (H, W, 3), or in views (views, frames, H, W, 3); audio: (views, mel bins, frames); depth and thermal:
        (H, W); imu: (channels, samples). Inputs in views are for `ImageBind.embed_views`, the others for `embed`.

        Raises:
          ValueError: the modality is unknown, or none of these.
        """
        pixels = (self.image_size, self.image_size)
        shapes = {
            ("vision", False): (*pixels, 3),
            ("vision", True): (self.video_clips * self.video_crops, self.video_frames, *pixels, 3),
            ("audio", True): (self.audio_clips, self.audio_num_mel_bins, self.audio_target_len),
            ("depth", False): pixels,
            ("thermal", False): pixels,
            ("imu", False): IMU_SHAPE,
        }
        row = MODALITIES.get(modality)
        if row is None or (row.branch, row.views) not in shapes:
            raise ValueError(f"{modality!r} is no modality that ImageBind reads")
        return shapes[row.branch, row.views]

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "ImageBindConfig":
        """Reads the constructor's arguments. Without `modalities`, the towers are those whose sizes are given.

        Raises:
          UserError: a field is missing or its value is refused.
        """
        if isinstance(config, Mapping):
            sized = [name for name in BRANCHES if any(f"{name}_{field}" in config for field in _SIZES)]
            config = {**config, "modalities": config.get("modalities") or sized}
        cfg = hf_config.config_from_dict(cls, config, {"model_type": ("imagebind",)}, ("architectures",))
        wanted = [f"{name}_{field}" for name in cfg.modalities for field in _SIZES]
        if missing := [field for field in wanted if config.get(field) is None]:
            raise UserError(f"{cls.__name__}: config lacks {', '.join(missing)}")
        return cfg

    @classmethod
    def from_pretrained(cls, folder: str | pathlib.Path) -> "ImageBindConfig":
        """Reads config.json; the release is a file of weights alone, imagebind_huge's.

        Raises:
          UserError: neither is there, or a value is refused.
        """
        folder = pathlib.Path(folder)
        if (folder / RELEASED_FILE).is_file() and not (folder / "config.json").exists():
            return cls.huge()
        return cls.from_dict(hf_config.read_config(folder / "config.json"))

    @classmethod
    def huge(cls) -> "ImageBindConfig":
        """imagebind_huge, the published model."""
        return cls(out_embed_dim=1024)


class Attention(nnx.Module):
    """Self-attention with one projection for query, key and value: nn.MultiheadAttention's packed layout.

    With `bias_kv` there is one more key and value after the sequence, learned (add_bias_kv).
    """

    def __init__(self, width: int, heads: int, *, bias_kv: bool, rngs: nnx.Rngs):
        self.heads = heads
        self.in_proj = Linear(width, 3 * width, rngs=rngs)
        self.out_proj = Linear(width, width, rngs=rngs)
        self.bias_k = _vector(width, width**-0.5, rngs) if bias_kv else None
        self.bias_v = _vector(width, width**-0.5, rngs) if bias_kv else None

    def __call__(self, x, causal):
        qkv = self.in_proj(x).reshape(*x.shape[:-1], 3, self.heads, -1)  # [B, T, 3, H, d]
        q, k, v = (qkv[..., i, :, :] for i in range(3))
        if self.bias_k is not None:
            k, v = self._append(k, self.bias_k), self._append(v, self.bias_v)  # [B, T + 1, H, d]
        return self.out_proj(attention(q, k, v, causal=causal).reshape(x.shape))

    def _append(self, tokens, bias):
        token = bias[...].astype(tokens.dtype).reshape(1, 1, *tokens.shape[2:])
        return jnp.concatenate([tokens, jnp.broadcast_to(token, (len(tokens), *token.shape[1:]))], axis=1)


def _vector(width: int, scale: float, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(scale * draw(jax.random.normal, rngs, (1, 1, width)))


class Block(nnx.Module):
    def __init__(self, width: int, heads: int, *, bias_kv: bool, rngs: nnx.Rngs):
        self.norm_1 = LayerNorm(width, eps=_EPS)
        self.attn = Attention(width, heads, bias_kv=bias_kv, rngs=rngs)
        self.norm_2 = LayerNorm(width, eps=_EPS)
        self.fc1 = Linear(width, 4 * width, rngs=rngs)
        self.fc2 = Linear(4 * width, width, rngs=rngs)

    def __call__(self, x, causal, drop: tuple[Array, Array] | None = None):
        """`drop`: the rate at which branches are dropped, and a key for each of the two."""
        rate, keys = (0.0, (None, None)) if drop is None else drop
        x = x + drop_path(self.attn(self.norm_1(x), causal), rate, keys[0])
        return x + drop_path(self.fc2(gelu(self.fc1(self.norm_2(x)))), rate, keys[1])


def drop_path(branch: Float[Array, "b ..."], rate: float | Array, key: Array | None) -> Float[Array, "b ..."]:
    """Stochastic depth (Huang et al. 2016), numerics of timm's DropPath: a residual branch of whole samples is zero.

    That happens at `rate`, in [0, 1); the others grow by 1 / (1 - rate), so that the mean stays. Not without a key.
    """
    if key is None:
        return branch
    keep = jnp.asarray(1.0 - rate, branch.dtype)
    kept = jax.random.bernoulli(key, 1.0 - rate, (len(branch), *(1,) * (branch.ndim - 1)))
    return jnp.where(kept, branch / keep, 0)


class Trunk(nnx.Module):
    """A stack of pre-norm blocks; vision has a LayerNorm in front, text is causal.

    In training the branches of block i of n are dropped at the rate `drop_path` * i / (n - 1).
    """

    def __init__(
        self,
        width: int,
        blocks: int,
        heads: int,
        *,
        pre_norm: bool = False,
        causal: bool = False,
        bias_kv: bool = False,
        drop_path: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.causal = causal
        self.drop_path = drop_path
        self.pre_norm = LayerNorm(width, eps=_EPS) if pre_norm else None
        self.blocks = stack(lambda rngs: Block(width, heads, bias_kv=bias_kv, rngs=rngs), blocks, rngs)
        self.num_blocks = blocks

    def __call__(self, x: Float[Array, "b t d"], key: Array | None = None) -> Float[Array, "b t d"]:
        """`key` switches on the drop path (training)."""
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        drops = None
        if key is not None and self.drop_path:
            n = self.num_blocks
            drops = jnp.linspace(0.0, self.drop_path, n), jax.random.split(key, (n, 2))
        return scan_layers(lambda x, block, drop: block(x, self.causal, drop), x, self.blocks, drops)


class PatchStem(nnx.Module):
    """Patches of maps of any rank, a class token in front, learned positions; all but vision normalise the patches."""

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        *,
        norm: bool = True,
        rngs: nnx.Rngs,
    ):
        """`shape` is one map's, channels last."""
        self.proj = Conv(shape[-1], width, kernel, stride=stride, bias=False, rngs=rngs)
        self.norm = LayerNorm(width, eps=_STEM_EPS) if norm else None
        self.cls_token = nnx.Param(jnp.zeros((1, 1, width)))
        patches = math.prod((n - k) // s + 1 for n, k, s in zip(shape[:-1], kernel, stride, strict=True))
        self.pos_embed = nnx.Param(0.02 * draw(jax.random.normal, rngs, (1, 1 + patches, width)))

    def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b t d"]:
        patches = self.proj(x)  # [B, *S', D]
        patches = patches.reshape(len(x), -1, patches.shape[-1])
        if self.norm is not None:
            patches = self.norm(patches)
        cls_token = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (len(x), 1, patches.shape[-1]))
        return jnp.concatenate([cls_token, patches], axis=1) + self.pos_embed[...].astype(x.dtype)


class VisionStem(PatchStem):
    """Patches in space and time of images and clips."""

    def __init__(self, cfg: ImageBindConfig, *, rngs: nnx.Rngs):
        self.clip_shape = (cfg.video_frames, *cfg.input_shape("image"))
        kernel = cfg.kernel_size
        super().__init__(self.clip_shape, cfg.vision_embed_dim, kernel, kernel, norm=False, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w 3"] | Float[Array, "b f h w 3"]) -> Float[Array, "b t d"]:
        _check("vision", x, self.clip_shape[1:], self.clip_shape)
        if x.ndim == 4:
            x = jnp.repeat(x[:, None], self.clip_shape[0], axis=1)  # an image repeated along time
        return super().__call__(x)


class MapStem(PatchStem):
    """Patches of maps with one channel: spectrograms, depth, thermal images."""

    def __init__(self, name: str, size: tuple[int, int], width: int, kernel: int, stride: int, *, rngs: nnx.Rngs):
        self.name, self.size = name, size
        super().__init__((*size, 1), width, (kernel, kernel), (stride, stride), rngs=rngs)

    def __call__(self, x: Array) -> Float[Array, "b t d"]:
        _check(self.name, x, self.size)
        return super().__call__(x[..., None])


class ImuStem(PatchStem):
    """Stretches of time of all the channels."""

    def __init__(self, cfg: ImageBindConfig, *, rngs: nnx.Rngs):
        kernel = (cfg.imu_kernel_size,)
        super().__init__(IMU_SHAPE[::-1], cfg.imu_embed_dim, kernel, kernel, rngs=rngs)

    def __call__(self, x: Float[Array, "b c s"]) -> Float[Array, "b t d"]:
        _check("imu", x, IMU_SHAPE)
        return super().__call__(x.mT)  # [B, samples, channels]


def _check(modality: str, x: Array, *shapes: tuple[int, ...]) -> None:
    if x.shape[1:] not in shapes:
        wanted = " or ".join(f"[B, {', '.join(map(str, shape))}]" for shape in shapes)
        raise ValueError(f"{modality} takes {wanted}, got {list(x.shape)}")


class TextStem(nnx.Module):
    """Token embeddings and learned positions."""

    def __init__(self, cfg: ImageBindConfig, *, rngs: nnx.Rngs):
        self.token_embedding = Embedding(cfg.text_vocab_size, cfg.text_embed_dim, rngs=rngs)
        length, width = cfg.text_context_length, cfg.text_embed_dim
        self.pos_embed = nnx.Param(0.01 * draw(jax.random.normal, rngs, (1, length, width)))

    def __call__(self, ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        if ids.ndim != 2 or ids.shape[1] > self.pos_embed.shape[1]:
            raise ValueError(f"text takes ids [B, up to {self.pos_embed.shape[1]}], got {list(ids.shape)}")
        x = self.token_embedding(ids)
        return x + self.pos_embed[:, : ids.shape[1]].astype(x.dtype)


class Tower(nnx.Module):
    """One modality: stem, trunk and head. Unit vectors come out, times a scale if there is one: a number, or "learned".

    `dropout` is the head's, in training.
    """

    def __init__(
        self,
        stem: nnx.Module,
        trunk: Trunk,
        width: int,
        out: int,
        *,
        scale: float | str | None,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.stem = stem
        self.trunk = trunk
        self.norm = LayerNorm(width, eps=_EPS)
        self.head = Linear(width, out, bias=False, rngs=rngs)
        self.scale = scale
        self.dropout = dropout
        self.log_logit_scale = nnx.Param(jnp.log(1 / 0.07)) if scale == "learned" else None

    def __call__(self, x: Array, position: int | Int[Array, "#b"], key: Array | None = None) -> Float[Array, "b e"]:
        """`position` is the index of the pooled token; `key` enables the dropout of training."""
        trunk_key, head_key = (None, None) if key is None else jax.random.split(key)
        tokens = self.trunk(self.stem(x), trunk_key)  # [B, T, D]
        pooled = self.norm(jax.vmap(lambda row, at: row[at])(tokens, jnp.broadcast_to(position, len(tokens))))
        if head_key is not None and self.dropout:
            kept = jax.random.bernoulli(head_key, 1.0 - self.dropout, pooled.shape)
            pooled = jnp.where(kept, pooled / (1.0 - self.dropout), 0)
        pooled = self.head(pooled).astype(jnp.float32)
        unit = pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)
        if self.scale is None:
            return unit
        if self.log_logit_scale is None:
            return unit * self.scale
        return unit * jnp.minimum(jnp.exp(self.log_logit_scale[...].astype(jnp.float32)), _MAX_LOGIT_SCALE)


class ImageBind(nnx.Module):
    """The towers named in `branches` (None: all that the config has), by name in `towers`.

    Raises:
      ValueError: a modality that the config does not have.
    """

    def __init__(self, cfg: ImageBindConfig, *, branches: Sequence[str] | None = None, rngs: nnx.Rngs):
        branches = cfg.modalities if branches is None else branches
        if unknown := set(branches) - set(cfg.modalities):
            raise ValueError(f"this ImageBind has no {' or '.join(sorted(unknown))} (only {', '.join(cfg.modalities)})")
        self.config = cfg
        pixels, spectrogram = cfg.input_shape("depth"), cfg.input_shape("audio")[1:]
        widths = {name: cfg.sizes(name)[0] for name in BRANCHES}
        depth, thermal = cfg.depth_kernel_size, cfg.thermal_kernel_size
        stems = {
            "vision": lambda: VisionStem(cfg, rngs=rngs),
            "text": lambda: TextStem(cfg, rngs=rngs),
            "audio": lambda: MapStem(
                "audio", spectrogram, widths["audio"], cfg.audio_kernel_size, cfg.audio_stride, rngs=rngs
            ),
            "depth": lambda: MapStem("depth", pixels, widths["depth"], depth, depth, rngs=rngs),
            "thermal": lambda: MapStem("thermal", pixels, widths["thermal"], thermal, thermal, rngs=rngs),
            "imu": lambda: ImuStem(cfg, rngs=rngs),
        }

        def tower(name: str) -> Tower:
            trunk = Trunk(
                *cfg.sizes(name),
                pre_norm=name == "vision",
                causal=name == "text",
                bias_kv=name in _BIAS_KV,
                drop_path=cfg.drop_path(name),
                rngs=rngs,
            )
            scale = "learned" if name == "text" else _LOGIT_SCALES.get(name)
            dropout = _HEAD_DROPOUT.get(name, 0.0)
            return Tower(stems[name](), trunk, widths[name], cfg.out_embed_dim, scale=scale, dropout=dropout, rngs=rngs)

        self.towers = nnx.Dict({name: tower(name) for name in branches})

    def embed(self, modality: str, x: Array, key: Array | None = None) -> Float[Array, "b e"]:
        """Embeddings in the shared space, float32 [B, out_embed_dim].

        vision   an image [B, H, W, 3], which is repeated to video_frames, or a clip [B, video_frames, H, W, 3], floats
                 normalised by CLIP's mean and deviation; the result has unit length
        audio    log-mel spectrograms [B, audio_num_mel_bins, audio_target_len], normalised; the result has unit length
                 (NExT-GPT leaves out the audio scale that ImageBind's own forward multiplies by)
        depth    disparity maps [B, H, W], thermal: images of one channel [B, H, W]; imu: [B, 6, 2000] samples; the
                 results have the lengths 5, 10 and 5
        text     ids [B, up to text_context_length] int32, read at the highest id of each row (the end token); the
                 result is scaled by the learned logit scale

        `key` switches on what the original drops in training: residual branches of the audio and imu trunks, and
        features before the imu head.

        Raises:
          ValueError: the modality was not built, or x has another shape.
        """
        if modality not in self.towers:
            raise ValueError(f"this ImageBind has no {modality!r} tower (it has {sorted(self.towers)})")
        return self.towers[modality](x, x.argmax(-1) if modality == "text" else 0, key)

    def embed_views(self, modality: str, x: Float[Array, "b v ..."], key: Array | None = None) -> Float[Array, "b e"]:
        """The mean of the embeddings of each medium's V views, float32 [B, out_embed_dim].

        A view is what `embed` takes. The mean is not normalised again, so that it is shorter than a view's embedding:
        as NExT-GPT reads a video's clips and crops and an audio's clips.

        Raises:
          ValueError: as `embed`.
        """
        embeddings = self.embed(modality, x.reshape(-1, *x.shape[2:]), key)
        return embeddings.reshape(*x.shape[:2], -1).mean(1)

    def encode_media(self, branch: str, x: Float[Array, "b ..."], *, views: bool = False) -> Float[Array, "b 1 e"]:
        """One embedding a medium, by `embed_views` or `embed`. Raises ValueError as they do."""
        return (self.embed_views if views else self.embed)(branch, x)[:, None]
