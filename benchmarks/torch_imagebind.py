"""The vision and audio towers of the original ImageBind in PyTorch, with the keys of its checkpoint."""

import math

import torch

from nextgpt_jax.models.encoders.imagebind import ImageBindConfig


class TorchImageBind(torch.nn.Module):
    """The vision or audio tower: the original's module names and its use of MultiheadAttention."""

    def __init__(self, cfg: ImageBindConfig, modality: str):
        super().__init__()
        width, blocks, heads = cfg.sizes(modality)
        self.modality = modality
        if modality == "vision":
            patches = torch.nn.Conv3d(3, width, cfg.kernel_size, cfg.kernel_size, bias=False)
            stem, tokens = _tree(proj=torch.nn.Sequential(torch.nn.Identity(), patches)), cfg.num_patches
        else:
            size, stride = cfg.audio_kernel_size, cfg.audio_stride
            stem = _tree(proj=torch.nn.Conv2d(1, width, size, stride, bias=False), norm_layer=torch.nn.LayerNorm(width))
            tokens = math.prod((n - size) // stride + 1 for n in cfg.input_shape("audio")[1:])
        trunk = _tree(
            blocks=torch.nn.ModuleList(TorchBlock(width, heads, bias_kv=modality == "audio") for _ in range(blocks))
        )
        if modality == "vision":
            trunk.pre_transformer_layer = torch.nn.Sequential(torch.nn.LayerNorm(width, eps=1e-6))
        preprocessor = _tree(
            cls_token=torch.nn.Parameter(torch.randn(1, 1, width)),
            rgbt_stem=stem,
            pos_embedding_helper=_tree(pos_embed=torch.nn.Parameter(torch.randn(1, 1 + tokens, width))),
        )
        head = torch.nn.Linear(width, cfg.out_embed_dim, bias=False)
        head = torch.nn.Sequential(torch.nn.LayerNorm(width, eps=1e-6), torch.nn.Identity(), head)
        self.modality_preprocessors = _tree(**{modality: preprocessor})
        self.modality_trunks = _tree(**{modality: trunk})
        self.modality_heads = _tree(**{modality: head})

    def forward(self, x):
        stem, trunk, head = (
            getattr(part, self.modality)
            for part in (self.modality_preprocessors, self.modality_trunks, self.modality_heads)
        )
        x = stem.rgbt_stem.proj(x).flatten(2).transpose(1, 2)  # [B, T, D]
        if self.modality == "audio":
            x = stem.rgbt_stem.norm_layer(x)
        x = torch.cat([stem.cls_token.expand(len(x), -1, -1), x], 1) + stem.pos_embedding_helper.pos_embed
        if self.modality == "vision":
            x = trunk.pre_transformer_layer(x)
        x = x.transpose(0, 1)  # [T, B, D], as in the original's blocks
        for block in trunk.blocks:
            x = block(x)
        return torch.nn.functional.normalize(head(x[0]), dim=-1)


class TorchBlock(torch.nn.Module):
    """A transformer block with the original's parameter names."""

    def __init__(self, width: int, heads: int, *, bias_kv: bool):
        super().__init__()
        self.norm_1 = torch.nn.LayerNorm(width, eps=1e-6)
        self.attn = torch.nn.MultiheadAttention(width, heads, add_bias_kv=bias_kv)
        self.norm_2 = torch.nn.LayerNorm(width, eps=1e-6)
        self.mlp = torch.nn.Sequential()
        self.mlp.add_module("fc1", torch.nn.Linear(width, 4 * width))
        self.mlp.add_module("act", torch.nn.GELU())
        self.mlp.add_module("fc2", torch.nn.Linear(4 * width, width))

    def forward(self, x):
        h = self.norm_1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.norm_2(x))


def _tree(**children) -> torch.nn.Module:
    """A module that only holds its children."""
    module = torch.nn.Module()
    for name, child in children.items():
        setattr(module, name, child)
    return module
