"""The GPU kernels of ``gpu_norm.py``, in Triton.

A sample is ``[N, C]``: pixels, channels. Programs are numbered sample by sample: CUDA has room for as many along one
axis alone. A program has a tile of it as ``[ROWS, GP, CP]``: pixels, groups, channels of
a group, the last two rounded up to powers of two. Every sum is taken in float32. ``WHOLE``: the tile is the sample.
"""
# pyright: basic, reportMissingImports=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

import inspect
from typing import Any

import triton
import triton.language as tl

NOT_SPECIALISED = ["n", "tiles", "parts", "rows_of_part", "w_row", "b_row", "s_row"]
"""Numbers that a kernel is not compiled anew for."""


def compiled(function) -> Any:
    """Without what a type checker has put around it: Triton reads its text, and the names that it uses."""
    return triton.jit(inspect.unwrap(function), do_not_specialize=NOT_SPECIALISED)


@compiled
def _places(first, n, G: tl.constexpr, CG: tl.constexpr, GP: tl.constexpr, CP: tl.constexpr, ROWS: tl.constexpr):
    """Offsets in a sample, of the tile that begins at pixel ``first``, and which of them there are."""
    row = first + tl.arange(0, ROWS)[:, None, None]
    group, channel = tl.arange(0, GP)[None, :, None], tl.arange(0, CP)[None, None, :]
    there = (row < n) & (group < G) & (channel < CG)
    return row * (G * CG) + group * CG + channel, there


@compiled
def _own(parts):
    """This program's sample, counted in 64 bits as what lies before it is, and which of the sample's ``parts``."""
    program = tl.program_id(0)
    return (program // parts).to(tl.int64), program % parts


@compiled
def _per_channel(pointer, row, sample, G: tl.constexpr, CG: tl.constexpr, GP: tl.constexpr, CP: tl.constexpr):
    """``[GP, CP]`` of a sample, whose rows are ``row`` apart."""
    group, channel = tl.arange(0, GP)[:, None], tl.arange(0, CP)[None, :]
    at = sample * row + group * CG + channel
    return tl.load(pointer + at, mask=(group < G) & (channel < CG), other=0.0).to(tl.float32)


@compiled
def _mean_and_squares(v, there, count):
    """Of each group of a tile of ``count`` numbers each: the mean, and the squares of what differs from it."""
    mean = tl.sum(tl.sum(v, axis=2), axis=0) / count
    off = tl.where(there, v - mean[None, :, None], 0.0)
    return mean, tl.sum(tl.sum(off * off, axis=2), axis=0)


@compiled
def moments(
    x, partial, parts, n, LOOKS: tl.constexpr, G: tl.constexpr, CG: tl.constexpr, GP: tl.constexpr, CP: tl.constexpr,
    ROWS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Mean and squares of each group in a part of the sample: ``partial`` ``[B, parts, 2, G]``."""
    sample, part = _own(parts)
    mean = tl.zeros([GP], tl.float32)
    squares = tl.zeros([GP], tl.float32)
    for look in range(LOOKS):
        first = (part * LOOKS + look) * ROWS
        at, there = _places(first, n, G, CG, GP, CP, ROWS)
        v = tl.load(x + sample * n * (G * CG) + at, mask=there, other=0.0).to(tl.float32)
        count = (first * CG - part * LOOKS * ROWS * CG).to(tl.float32)  # tiles before this one are full
        more = (tl.maximum(tl.minimum(n - first, ROWS), 0) * CG).to(tl.float32)
        its_mean, its_squares = _mean_and_squares(v, there, tl.maximum(more, 1.0))
        off, share = its_mean - mean, more / (count + more)
        mean += off * share
        squares += its_squares + off * off * (count * share)
    group = tl.arange(0, GP)
    at = (sample * parts + part) * (2 * G) + group
    tl.store(partial + at, mean, mask=group < G)
    tl.store(partial + at + G, squares, mask=group < G)


@compiled
def normalise(
    x, partial, weight, w_row, bias, b_row, scale_shift, s_row, eps, y, mean_out, rstd_out, parts, rows_of_part,
    tiles, n,
    SCALE: tl.constexpr, ACT: tl.constexpr, PP: tl.constexpr, G: tl.constexpr, CG: tl.constexpr, GP: tl.constexpr,
    CP: tl.constexpr, ROWS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One tile of y; the first program of a sample keeps its mean and inverse standard deviation, ``[B, G]``."""
    sample, tile = _own(tiles)
    at, there = _places(tile * ROWS, n, G, CG, GP, CP, ROWS)
    v = tl.load(x + sample * n * (G * CG) + at, mask=there, other=0.0).to(tl.float32)
    count = (n * CG).to(tl.float32)
    group = tl.arange(0, GP)
    if WHOLE:
        mean, squares = _mean_and_squares(v, there, count)
    else:
        part = tl.arange(0, PP)[:, None]
        known = (part < parts) & (group[None, :] < G)
        where = partial + (sample * parts + part) * (2 * G) + group[None, :]
        means = tl.load(where, mask=known, other=0.0)
        numbers = (tl.maximum(tl.minimum(n - part * rows_of_part, rows_of_part), 0) * CG).to(tl.float32)
        mean = tl.sum(means * numbers, axis=0) / count
        off = tl.where(known, means - mean[None, :], 0.0)
        squares = tl.sum(tl.load(where + G, mask=known, other=0.0) + numbers * off * off, axis=0)
    rstd = 1.0 / tl.sqrt(squares / count + eps)
    w, b = _per_channel(weight, w_row, sample, G, CG, GP, CP), _per_channel(bias, b_row, sample, G, CG, GP, CP)
    if SCALE:
        scale = 1.0 + _per_channel(scale_shift, s_row, sample, G, CG, GP, CP)
        w, b = w * scale, b * scale + _per_channel(scale_shift + G * CG, s_row, sample, G, CG, GP, CP)
    z = (v - mean[None, :, None]) * (w * rstd[:, None])[None, :, :] + b[None, :, :]
    if ACT:
        z = z / (1.0 + tl.exp(-z))
    tl.store(y + sample * n * (G * CG) + at, z.to(y.dtype.element_ty), mask=there)
    if tile == 0:
        tl.store(mean_out + sample * G + group, mean, mask=group < G)
        tl.store(rstd_out + sample * G + group, rstd, mask=group < G)


@compiled
def _gradient_of_z(
    x, dy, weight, w_row, bias, b_row, mean, rstd, sample, at, there, n,
    ACT: tl.constexpr, G: tl.constexpr, CG: tl.constexpr, GP: tl.constexpr, CP: tl.constexpr,
):  # fmt: skip
    """Of what SiLU takes, with the normalised x; both of a tile."""
    group = tl.arange(0, GP)
    own = sample * G + group
    m, r = tl.load(mean + own, mask=group < G, other=0.0), tl.load(rstd + own, mask=group < G, other=0.0)
    normal = (tl.load(x + sample * n * (G * CG) + at, mask=there, other=0.0).to(tl.float32) - m[None, :, None]) * r[
        None, :, None
    ]
    normal = tl.where(there, normal, 0.0)
    dz = tl.load(dy + sample * n * (G * CG) + at, mask=there, other=0.0).to(tl.float32)
    if ACT:
        w, b = _per_channel(weight, w_row, sample, G, CG, GP, CP), _per_channel(bias, b_row, sample, G, CG, GP, CP)
        z = normal * w[None, :, :] + b[None, :, :]
        gate = 1.0 / (1.0 + tl.exp(-z))
        dz = dz * gate * (1.0 + z * (1.0 - gate))
    return dz, normal


@compiled
def sums(
    x, dy, weight, w_row, bias, b_row, mean, rstd, partial, parts, n,
    ACT: tl.constexpr, LOOKS: tl.constexpr, G: tl.constexpr, CG: tl.constexpr, GP: tl.constexpr, CP: tl.constexpr,
    ROWS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Of dz and of dz times the normalised x, in a part of the sample: ``partial`` ``[B, parts, 2, C]``."""
    sample, part = _own(parts)
    plain = tl.zeros([GP, CP], tl.float32)
    times_x = tl.zeros([GP, CP], tl.float32)
    for look in range(LOOKS):
        at, there = _places((part * LOOKS + look) * ROWS, n, G, CG, GP, CP, ROWS)
        dz, normal = _gradient_of_z(
            x, dy, weight, w_row, bias, b_row, mean, rstd, sample, at, there, n, ACT, G, CG, GP, CP
        )  # fmt: skip
        plain += tl.sum(dz, axis=0)
        times_x += tl.sum(dz * normal, axis=0)
    group, channel = tl.arange(0, GP)[:, None], tl.arange(0, CP)[None, :]
    known = (group < G) & (channel < CG)
    where = partial + (sample * parts + part) * (2 * G * CG) + group * CG + channel
    tl.store(where, plain, mask=known)
    tl.store(where + G * CG, times_x, mask=known)


@compiled
def gradient(
    x, dy, weight, w_row, bias, b_row, mean, rstd, partial, dx, dweight, dbias, parts, rows_of_part, tiles, n,
    ACT: tl.constexpr, PP: tl.constexpr, G: tl.constexpr, CG: tl.constexpr, GP: tl.constexpr, CP: tl.constexpr,
    ROWS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One tile of dx; the first program of a sample keeps dweight and dbias, ``[B, C]``."""
    sample, tile = _own(tiles)
    at, there = _places(tile * ROWS, n, G, CG, GP, CP, ROWS)
    dz, normal = _gradient_of_z(x, dy, weight, w_row, bias, b_row, mean, rstd, sample, at, there, n, ACT, G, CG, GP, CP)
    group, channel = tl.arange(0, GP)[:, None], tl.arange(0, CP)[None, :]
    known, place = (group < G) & (channel < CG), group * CG + channel
    if WHOLE:
        plain, times_x = tl.sum(dz, axis=0), tl.sum(dz * normal, axis=0)
    else:
        part = tl.arange(0, PP)[:, None, None]
        where = partial + (sample * parts + part) * (2 * G * CG) + place[None, :, :]
        all_known = (part < parts) & known[None, :, :]
        plain = tl.sum(tl.load(where, mask=all_known, other=0.0), axis=0)
        times_x = tl.sum(tl.load(where + G * CG, mask=all_known, other=0.0), axis=0)
    w = _per_channel(weight, w_row, sample, G, CG, GP, CP)
    count = (n * CG).to(tl.float32)
    middle, slope = tl.sum(w * plain, axis=1) / count, tl.sum(w * times_x, axis=1) / count
    r = tl.load(rstd + sample * G + tl.arange(0, GP), mask=tl.arange(0, GP) < G, other=0.0)
    centred = dz * w[None, :, :] - middle[None, :, None] - normal * slope[None, :, None]
    tl.store(dx + sample * n * (G * CG) + at, (centred * r[None, :, None]).to(dx.dtype.element_ty), mask=there)
    if tile == 0:
        tl.store(dweight + sample * (G * CG) + place, times_x, mask=known)
        tl.store(dbias + sample * (G * CG) + place, plain, mask=known)
