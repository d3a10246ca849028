"""Slow, literal computations in the names and shapes of the published checkpoints; nothing of the package is used.

Written from the equations, token by token where that is clearest: the tests load such a state dict through the key
maps and compare.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

VAR_SIDES = (1, 2, 3, 4)
SCHEDULE = tuple((side, side) for side in VAR_SIDES)


def random_state(shapes, seed=0, scale=0.15):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * scale for name, shape in shapes.items()}


def var_shapes(layers=2, heads=2, width=128, channels=8, codes=64, classes=10, sides=VAR_SIDES, shared=False):
    tokens, scales = sum(s * s for s in sides), len(sides)
    shapes = {
        "pos_start": (1, 1, width),
        "pos_1LC": (1, tokens, width),
        "lvl_embed.weight": (scales, width),
        "class_emb.weight": (classes + 1, width),
        "word_embed.weight": (width, channels),
        "word_embed.bias": (width,),
        "head_nm.ada_lin.1.weight": (2 * width, width),
        "head_nm.ada_lin.1.bias": (2 * width,),
        "head.weight": (codes, width),
        "head.bias": (codes,),
        "lvl_1L": (1, tokens),
        "attn_bias_for_masking": (1, 1, tokens, tokens),
    }
    if shared:
        shapes |= {"shared_ada_lin.1.weight": (6 * width, width), "shared_ada_lin.1.bias": (6 * width,)}
    for i in range(layers):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in _block(width, heads, shared).items()}
    return shapes


def _block(width, heads, shared):
    shapes = {
        "attn.mat_qkv.weight": (3 * width, width),
        "attn.q_bias": (width,),
        "attn.v_bias": (width,),
        "attn.zero_k_bias": (width,),
        "attn.scale_mul_1H11": (1, heads, 1, 1),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "ffn.fc1.weight": (4 * width, width),
        "ffn.fc1.bias": (4 * width,),
        "ffn.fc2.weight": (width, 4 * width),
        "ffn.fc2.bias": (width,),
    }
    if shared:
        return shapes | {"ada_gss": (1, 1, 6, width)}
    return shapes | {"ada_lin.1.weight": (6 * width, width), "ada_lin.1.bias": (6 * width,)}


def layer_norm(x):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


def head_attention(q, k, v, scale):
    """(n, d), (t, d), (t, d): softmax attention, row by row."""
    rows = []
    for row in q:
        weights = torch.exp(scale * (k @ row))
        rows.append((weights / weights.sum()) @ v)
    return torch.stack(rows)


def cosine_attention(x, past, weight, q_bias, v_bias, log_scale, proj, proj_bias, rope=None):
    """Self attention of one sample (n, C) behind ``past``, a list of (k, v) per head that is extended."""
    width, heads = x.shape[1], log_scale.numel()
    dim = width // heads
    q = x @ weight[:width].T + q_bias
    k = x @ weight[width : 2 * width].T
    v = x @ weight[2 * width :].T + v_bias
    out = torch.zeros_like(x)
    for h in range(heads):
        rows = slice(h * dim, (h + 1) * dim)
        qh = q[:, rows] / q[:, rows].norm(dim=1, keepdim=True)
        kh = k[:, rows] / k[:, rows].norm(dim=1, keepdim=True)
        if rope is not None:
            qh, kh = rope(qh), rope(kh)
        if len(past) <= h:
            past.append((kh, v[:, rows]))
        else:
            past[h] = (torch.cat([past[h][0], kh]), torch.cat([past[h][1], v[:, rows]]))
        scale = math.exp(min(float(log_scale.flatten()[h]), math.log(100)))
        out[:, rows] = head_attention(qh * scale, *past[h], 1.0)
    return out @ proj.T + proj_bias


def mlp(x, s, place):
    hidden = x @ s[place + "fc1.weight"].T + s[place + "fc1.bias"]
    hidden = F.gelu(hidden, approximate="tanh")
    return hidden @ s[place + "fc2.weight"].T + s[place + "fc2.bias"]


def silu(x):
    return x * torch.sigmoid(x)


class VarReference:
    """Logits of one row (one class), scale by scale, given the inputs of each scale."""

    def __init__(self, state, label, sides=VAR_SIDES):
        self.s, self.sides = state, sides
        self.layers = len({k.split(".")[1] for k in state if k.startswith("blocks.")})
        self.cond = state["class_emb.weight"][label]
        self.past = [[] for _ in range(self.layers)]
        level = torch.cat([torch.full((s * s,), i) for i, s in enumerate(sides)])
        self.position = state["lvl_embed.weight"][level] + state["pos_1LC"][0]
        self.ends = [sum(s * s for s in sides[: i + 1]) for i in range(len(sides))]

    def logits(self, scale, tokens):
        """tokens: (n, channels), ignored at scale 0."""
        s = self.s
        end = self.ends[scale]
        place = self.position[end - self.sides[scale] ** 2 : end]
        if scale == 0:
            x = self.cond[None] + s["pos_start"][0] + place
        else:
            x = tokens @ s["word_embed.weight"].T + s["word_embed.bias"] + place
        for i in range(self.layers):
            x = self._block(x, i)
        six = silu(self.cond) @ s["head_nm.ada_lin.1.weight"].T + s["head_nm.ada_lin.1.bias"]
        mul, add = six.chunk(2)
        return (layer_norm(x) * (1 + mul) + add) @ s["head.weight"].T + s["head.bias"]

    def _block(self, x, i):
        s, b = self.s, f"blocks.{i}."
        if "shared_ada_lin.1.weight" in s:
            six = silu(self.cond) @ s["shared_ada_lin.1.weight"].T + s["shared_ada_lin.1.bias"]
            six = six.view(6, -1) + s[b + "ada_gss"][0, 0]
        else:
            six = (silu(self.cond) @ s[b + "ada_lin.1.weight"].T + s[b + "ada_lin.1.bias"]).view(6, -1)
        g1, g2, s1, s2, b1, b2 = six
        x = x + g1 * cosine_attention(
            layer_norm(x) * (1 + s1) + b1,
            self.past[i],
            s[b + "attn.mat_qkv.weight"],
            s[b + "attn.q_bias"],
            s[b + "attn.v_bias"],
            s[b + "attn.scale_mul_1H11"],
            s[b + "attn.proj.weight"],
            s[b + "attn.proj.bias"],
        )
        return x + g2 * mlp(layer_norm(x) * (1 + s2) + b2, s, b + "ffn.")


def brute_force_filter(logits, top_k, top_p):
    """Which entries of one row may be drawn."""
    keep = set(range(len(logits)))
    if top_k:
        least = sorted(logits.tolist(), reverse=True)[top_k - 1]
        keep = {i for i in keep if logits[i] >= least}
    probabilities = torch.tensor([logits[i].exp() if i in keep else 0.0 for i in range(len(logits))])
    probabilities = probabilities / probabilities.sum()
    total, order = 0.0, sorted(range(len(logits)), key=lambda i: float(probabilities[i]))
    for i in order[:-1]:
        total += float(probabilities[i])
        if total <= 1 - top_p:
            keep.discard(i)
    return keep


class VqReference(nn.Module):
    """A convolutional tokenizer with the published module names, written flat, for making state dicts."""

    def __init__(self, ch=32, multipliers=(1, 2), blocks=1, channels=8, codes=64):
        super().__init__()
        widths = [ch * m for m in multipliers]
        self.encoder, self.decoder = nn.Module(), nn.Module()
        enc, dec = self.encoder, self.decoder
        enc.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        enc.down = nn.ModuleList()
        before = ch
        for i, width in enumerate(widths):
            level = nn.Module()
            level.block = nn.ModuleList()
            level.attn = nn.ModuleList()
            for _ in range(blocks):
                level.block.append(_res(before, width))
                before = width
                if i == len(widths) - 1:
                    level.attn.append(_attn(width))
            if i < len(widths) - 1:
                level.downsample = nn.Module()
                level.downsample.conv = nn.Conv2d(width, width, 3, stride=2)
            enc.down.append(level)
        enc.mid = _mid(before)
        enc.norm_out, enc.conv_out = nn.GroupNorm(32, before, 1e-6), nn.Conv2d(before, channels, 3, padding=1)
        dec.conv_in, dec.mid = nn.Conv2d(channels, before, 3, padding=1), _mid(before)
        ups = []
        for i in reversed(range(len(widths))):
            level = nn.Module()
            level.block, level.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(blocks + 1):
                level.block.append(_res(before, widths[i]))
                before = widths[i]
                if i == len(widths) - 1:
                    level.attn.append(_attn(before))
            if i > 0:
                level.upsample = nn.Module()
                level.upsample.conv = nn.Conv2d(before, before, 3, padding=1)
            ups.insert(0, level)
        dec.up = nn.ModuleList(ups)
        dec.norm_out, dec.conv_out = nn.GroupNorm(32, before, 1e-6), nn.Conv2d(before, 3, 3, padding=1)
        self.quant_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(codes, channels)
        self.quantize.quant_resi = nn.Module()
        self.quantize.quant_resi.qresi_ls = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4)
        )

    def decode(self, latent):
        d = self.decoder
        x = _run_mid(d.mid, d.conv_in(self.post_quant_conv(latent)))
        for i in reversed(range(len(d.up))):
            for j, block in enumerate(d.up[i].block):
                x = _run_res(block, x)
                if len(d.up[i].attn):
                    x = _run_attn(d.up[i].attn[j], x)
            if i > 0:
                x = d.up[i].upsample.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return d.conv_out(silu(d.norm_out(x)))

    def phi(self, h, scale, scales):
        table = {4: (0, 1, 2, 3)}[scales]
        return 0.5 * h + 0.5 * self.quantize.quant_resi.qresi_ls[table[scale]](h)


def _res(inner, outer):
    block = nn.Module()
    block.norm1, block.conv1 = nn.GroupNorm(32, inner, 1e-6), nn.Conv2d(inner, outer, 3, padding=1)
    block.norm2, block.conv2 = nn.GroupNorm(32, outer, 1e-6), nn.Conv2d(outer, outer, 3, padding=1)
    if inner != outer:
        block.nin_shortcut = nn.Conv2d(inner, outer, 1)
    return block


def _attn(c):
    attn = nn.Module()
    attn.norm, attn.qkv, attn.proj_out = nn.GroupNorm(32, c, 1e-6), nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)
    return attn


def _mid(c):
    mid = nn.Module()
    mid.block_1, mid.attn_1, mid.block_2 = _res(c, c), _attn(c), _res(c, c)
    return mid


def _run_res(b, x):
    h = b.conv2(silu(b.norm2(b.conv1(silu(b.norm1(x))))))
    return h + (b.nin_shortcut(x) if hasattr(b, "nin_shortcut") else x)


def _run_attn(a, x):
    c = x.shape[1]
    q, k, v = a.qkv(a.norm(x)).flatten(2).split(c, dim=1)
    weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(c), dim=-1)
    return x + a.proj_out((v @ weights.transpose(1, 2)).view_as(x))


def _run_mid(m, x):
    return _run_res(m.block_2, _run_attn(m.attn_1, _run_res(m.block_1, x)))


INFINITY_GRIDS = ((1, 1), (2, 2), (4, 3))


def infinity_shapes(layers=2, heads=2, width=32, bits=4, text=24, null=9, chunks=1):
    shapes = {
        "cfg_uncond": (null, text),
        "pos_start": (1, 1, width),
        "text_norm.weight": (text,),
        "text_proj_for_sos.ca.mat_q": (1, 2, width // 2),
        "text_proj_for_sos.ca.mat_kv.weight": (2 * width, text),
        "text_proj_for_sos.ca.v_bias": (width,),
        "text_proj_for_sos.ca.zero_k_bias": (width,),
        "text_proj_for_sos.ca.proj.weight": (width, width),
        "text_proj_for_sos.ca.proj.bias": (width,),
        "text_proj_for_ca.0.weight": (width, text),
        "text_proj_for_ca.0.bias": (width,),
        "text_proj_for_ca.2.weight": (width, width),
        "text_proj_for_ca.2.bias": (width,),
        "lvl_embed.weight": (15, width),
        "word_embed.weight": (width, bits),
        "word_embed.bias": (width,),
        "shared_ada_lin.1.weight": (6 * width, width),
        "shared_ada_lin.1.bias": (6 * width,),
        "head_nm.ada_lin.1.weight": (2 * width, width),
        "head_nm.ada_lin.1.bias": (2 * width,),
        "head.weight": (2 * bits, width),
        "head.bias": (2 * bits,),
    }
    for i in range(layers):
        place = f"block_chunks.{i * chunks // layers}.module.{i % (layers // chunks)}."
        block = {"ada_gss": (1, 1, 6, width), "ca_norm.weight": (width,), "ca_norm.bias": (width,)}
        block |= {k.replace("attn.", "sa."): v for k, v in _block(width, heads, True).items()}
        block["sa.scale_mul_1H11"] = (1, 1, heads, 1)  # as built for another kernel
        block |= {
            "ca.mat_q.weight": (width, width),
            "ca.mat_q.bias": (width,),
            "ca.mat_kv.weight": (2 * width, width),
            "ca.v_bias": (width,),
            "ca.zero_k_bias": (width,),
            "ca.proj.weight": (width, width),
            "ca.proj.bias": (width,),
        }
        shapes |= {place + name: shape for name, shape in block.items()}
    return shapes


class InfinityReference:
    """Logits of one row (one text, without padding), scale by scale."""

    def __init__(self, state, text, grids=INFINITY_GRIDS, last=INFINITY_GRIDS[-1], heads=2, chunks=1):
        self.s, self.grids, self.last, self.heads = state, grids, last, heads
        names = sorted({tuple(map(int, k.split(".")[1:4:2])) for k in state if k.startswith("block_chunks.")})
        self.blocks = [f"block_chunks.{c}.module.{m}." for c, m in names]
        self.past = [[] for _ in self.blocks]
        text = text / (text.square().mean(1, keepdim=True) + 1e-6).sqrt() * state["text_norm.weight"]
        s, width = state, state["pos_start"].shape[-1]
        k = text @ s["text_proj_for_sos.ca.mat_kv.weight"][:width].T
        v = text @ s["text_proj_for_sos.ca.mat_kv.weight"][width:].T + s["text_proj_for_sos.ca.v_bias"]
        pooled = torch.zeros(width)
        for h in range(2):
            rows = slice(h * width // 2, (h + 1) * width // 2)
            query = s["text_proj_for_sos.ca.mat_q"][0, h][None]
            pooled[rows] = head_attention(query, k[:, rows], v[:, rows], (width // 2) ** -0.5)[0]
        self.cond = pooled @ s["text_proj_for_sos.ca.proj.weight"].T + s["text_proj_for_sos.ca.proj.bias"]
        hidden = F.gelu(
            text @ s["text_proj_for_ca.0.weight"].T + s["text_proj_for_ca.0.bias"], approximate="tanh"
        )
        self.memory = hidden @ s["text_proj_for_ca.2.weight"].T + s["text_proj_for_ca.2.bias"]

    def rope(self, grid):
        def turn(x):
            out, dim = x.clone(), x.shape[1]
            for token in range(len(x)):
                r, c = divmod(token, grid[1])
                row, column = (round(p * last / side) for p, last, side in zip((r, c), self.last, grid))
                for j in range(dim // 2):
                    place, i = (row, j) if j < dim // 4 else (column, j - dim // 4)
                    angle = place * 10_000 ** (-2 * i / (dim // 2))
                    a, b = x[token, 2 * j], x[token, 2 * j + 1]
                    out[token, 2 * j] = a * math.cos(angle) - b * math.sin(angle)
                    out[token, 2 * j + 1] = a * math.sin(angle) + b * math.cos(angle)
            return out

        return turn

    def logits(self, scale, tokens):
        s = self.s
        if scale == 0:
            x = self.cond[None] + s["pos_start"][0]
        else:
            x = tokens @ s["word_embed.weight"].T + s["word_embed.bias"]
        x = x + s["lvl_embed.weight"][scale]
        common = (silu(self.cond) @ s["shared_ada_lin.1.weight"].T + s["shared_ada_lin.1.bias"]).view(6, -1)
        for i, b in enumerate(self.blocks):
            g1, g2, s1, s2, b1, b2 = common + s[b + "ada_gss"][0, 0]
            x = x + g1 * cosine_attention(
                layer_norm(x) * (1 + s1) + b1,
                self.past[i],
                s[b + "sa.mat_qkv.weight"],
                s[b + "sa.q_bias"],
                s[b + "sa.v_bias"],
                s[b + "sa.scale_mul_1H11"],
                s[b + "sa.proj.weight"],
                s[b + "sa.proj.bias"],
                self.rope(self.grids[scale]),
            )
            x = x + self._cross(layer_norm(x) * s[b + "ca_norm.weight"] + s[b + "ca_norm.bias"], b)
            x = x + g2 * mlp(layer_norm(x) * (1 + s2) + b2, s, b + "ffn.")
        mul, add = (silu(self.cond) @ s["head_nm.ada_lin.1.weight"].T + s["head_nm.ada_lin.1.bias"]).chunk(2)
        return (layer_norm(x) * (1 + mul) + add) @ s["head.weight"].T + s["head.bias"]

    def _cross(self, x, b):
        s, width = self.s, x.shape[1]
        q = x @ s[b + "ca.mat_q.weight"].T + s[b + "ca.mat_q.bias"]
        k = self.memory @ s[b + "ca.mat_kv.weight"][:width].T
        v = self.memory @ s[b + "ca.mat_kv.weight"][width:].T + s[b + "ca.v_bias"]
        dim, out = width // self.heads, torch.zeros_like(x)
        for h in range(self.heads):
            rows = slice(h * dim, (h + 1) * dim)
            out[:, rows] = head_attention(q[:, rows], k[:, rows], v[:, rows], dim**-0.5)
        return out @ s[b + "ca.proj.weight"].T + s[b + "ca.proj.bias"]
