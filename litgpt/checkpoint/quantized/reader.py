"""Weights that are stored in few bits, as plain numbers: a table of formats, each a function of the stored tensors.

A weight is widened when it is asked for, some rows at a time, so that a model is never in memory twice. What a
`config.json` says of it comes from `families.quantization_config`.

O, I: rows and columns of a weight; G: groups of columns that share a scale; E: experts; R, C: rows and columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from litgpt.checkpoint.weights import Codes, Fetch, Tensors
from litgpt.errors import LitGPTError, quoted
from litgpt.families.quantization_config import StoredQuantization

FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
"""The values of E2M1's sixteen codes (OCP Microscaling Formats 1.0, 5.3.3)."""
AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]
"""Where AWQ's words of 4 bits have the columns 0 to 7, lowest bits first."""
CHUNK = 2**21
"""Weights that are widened at a time."""
PLAIN = StoredQuantization("", "")
"""Where nothing is said."""


@dataclass(frozen=True)
class Stored:
    """The tensors that one weight is stored in."""

    name: str
    """What the weight is called."""
    fetch: Fetch
    """One of its parts."""
    parts: frozenset[str]
    """The names of those there are."""
    how: StoredQuantization

    def get(self, part: str) -> Tensor | None:
        """A part; None: there is none."""
        return self.fetch(part) if part in self.parts else None

    @property
    def dtype(self) -> torch.dtype:
        """What the weight is widened to."""
        return torch.bfloat16 if self.how is PLAIN else getattr(torch, self.how.dtype)

    def refuse(self, why: str) -> LitGPTError:
        """The error that says why it can't be read."""
        return LitGPTError(f"The weight {quoted(self.name)} is stored in few bits, and {why}.")


@dataclass(frozen=True)
class FewBits:
    """A weight as codes: `widen` says what the fields are."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    groups: Tensor | None = None
    block_rows: int = 1
    values: Tensor | None = None

    def widened(self, dtype: torch.dtype) -> Tensor:
        """As plain numbers, `(O, I)`."""
        return widen(self.codes, self.scales, dtype, self.zeros, self.groups, self.block_rows, self.values)

    def as_codes(self) -> Codes | None:
        """In the form that products with few bits take; None: it has none."""
        columns, G = self.codes.size(1), self.scales.size(1)
        if self.values is not None or self.block_rows != 1 or self.codes.is_floating_point() or columns % max(1, G):
            return None
        if self.groups is not None and not torch.equal(self.groups, torch.arange(columns) // (columns // G)):
            return None
        signed, scales = self.codes.dtype == torch.int8, self.scales.float().expand(len(self.codes), -1)
        low, high = (int(bound) for bound in self.codes.aminmax())
        zeros = torch.zeros_like(scales) if self.zeros is None else self.zeros.float().expand_as(scales)
        if (G > 1 or not signed) and -8 * signed <= low and high <= (7 if signed else 15):
            codes = self.codes + 8 if signed else self.codes
            return Codes(4, codes.to(torch.uint8), scales, ((0 if signed else 8) - zeros) * scales)
        middle = 0 if signed else 128
        if G > 1 or not bool((zeros == middle).all()):
            return None
        return Codes(8, (self.codes.short() - middle).to(torch.int8), scales, torch.zeros_like(scales))


@dataclass(frozen=True)
class Format:
    """A way to store a weight, known by what its tensors' names end in."""

    mark: str
    """The ending of the tensor that makes a weight of this format."""
    needs: tuple[str, ...]
    """Other endings that have to be there for it to be of this format."""
    read: Callable[[Stored], Tensor | FewBits]
    also: tuple[str, ...] = ()
    """Further endings that belong to it."""
    weight: str = ".weight"
    """The ending of the weight's own name."""
    methods: tuple[str, ...] = ()
    """Where it is told from others by the `quant_method` alone: of which it is."""


def dequantized(stored: Tensors, how: StoredQuantization | None = None) -> Tensors:
    """The same tensors; those that are stored in few bits under their weight's name, as plain numbers.

    Args:
        stored: What the files hold.
        how: What the `config.json` beside them says of it.

    Raises:
        LitGPTError: A part of a weight is missing, or (when it is fetched) doesn't fit the others.
    """
    names = set(stored.names)
    found: dict[str, tuple[Format, str]] = {}
    hidden: set[str] = set()
    for entry in FORMATS:
        if entry.methods and how is not None and how.method not in entry.methods:
            continue
        for name in stored.names:
            base = name.removesuffix(entry.mark)
            fits = name.endswith(entry.mark) and all(base + part in names for part in entry.needs)
            if fits and name not in hidden:
                found[base + entry.weight] = entry, base
                hidden |= {base + part for part in (entry.mark, *entry.needs, *entry.also)} & names
    _check_whole(names - hidden)
    if not found:
        return stored

    def read(name: str) -> tuple[Tensor | FewBits, Stored]:
        entry, base = found[name]
        parts = frozenset(part for part in (entry.mark, *entry.needs, *entry.also) if base + part in names)
        one = Stored(name, lambda part: stored.fetch(base + part), parts, how or PLAIN)
        return entry.read(one), one

    @lru_cache(maxsize=1)  # all experts may be in one tensor, and are asked for one after the other
    def fetch(name: str) -> Tensor:
        if name not in found:
            return stored.fetch(name)
        weight, one = read(name)
        return weight.widened(one.dtype) if isinstance(weight, FewBits) else weight

    def codes(name: str) -> Codes | None:
        weight = read(name)[0] if name in found else None
        return weight.as_codes() if isinstance(weight, FewBits) else None

    ours = {base + entry.mark: name for name, (entry, base) in found.items()}
    order = [ours.get(name, name) for name in stored.names if name not in hidden or name in ours]
    return Tensors(tuple(order), fetch, codes=codes)


def _check_whole(left: Collection[str]) -> None:
    """Raises a LitGPTError where one of the tensors is a part of a weight whose other parts are not there."""
    for entry in FORMATS:
        for name in left if entry.mark not in ("", ".weight") else ():
            if name.endswith(entry.mark):
                base = name.removesuffix(entry.mark)
                missing = next((part for part in entry.needs if base + part not in left), entry.mark)
                raise LitGPTError(f"The checkpoint has a tensor {quoted(name)} without {quoted(base + missing)}.")


# ------------------------------------------------------------------------------------------------------- arithmetic


def unpack_bits(words: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of `bits` bits each, lowest first, out of `(…, words)` → `(…, count)` uint8."""
    octets = words.contiguous().view(torch.uint8)
    if octets.size(-1) * 8 < count * bits:
        raise ValueError(f"{octets.size(-1)} bytes a row are too few for {count} codes of {bits} bits")
    if 8 % bits == 0:
        mask = 2**bits - 1
        if bits == 8:
            return octets[..., :count]
        return torch.stack([octets >> shift & mask for shift in range(0, 8, bits)], dim=-1).flatten(-2)[..., :count]
    first = torch.arange(count) * bits
    padded = F.pad(octets, (0, 1))
    pairs = padded[..., first // 8].int() | padded[..., first // 8 + 1].int() << 8
    return (pairs >> first % 8 & 2**bits - 1).to(torch.uint8)


def widen(
    codes: Tensor,
    scales: Tensor,
    dtype: torch.dtype,
    zeros: Tensor | None = None,
    groups: Tensor | None = None,
    block_rows: int = 1,
    values: Tensor | None = None,
) -> Tensor:
    """`(code - zero) · scale` in float32, rounded once, some rows at a time.

    Args:
        codes: `(O, I)`, whole numbers or 8-bit floating-point ones.
        scales: `(1, 1)`, `(O, 1)`, `(O, G)`, or for blocks `(O / block_rows, G)` rounded up.
        dtype: Of the result.
        zeros: Of the shape of `scales`.
        groups: `(I,)`: the group that each column is in; None: the columns are shared out evenly.
        block_rows: Rows that share a scale.
        values: What each code stands for; None: itself.

    Returns:
        `(O, I)`.
    """
    rows, columns = codes.shape
    scales, G = scales.float(), scales.size(1)
    fits = scales.size(0) in (1, -(-rows // block_rows)) and (groups is not None or columns % max(1, G) == 0)
    if not fits or G < 1 or (zeros is not None and zeros.shape != scales.shape):
        raise ValueError(f"scales {tuple(scales.shape)} don't fit a weight {(rows, columns)}")
    if groups is not None and columns % G == 0 and torch.equal(groups, torch.arange(columns) // (columns // G)):
        groups = None
    wide = torch.empty(rows, columns, dtype=dtype)
    step = max(1, CHUNK // max(1, columns) // block_rows) * block_rows
    for start in range(0, rows, step):
        part = codes[start : start + step].contiguous()
        part = part.float() if values is None else values[part.int()]
        of_rows = torch.arange(start, start + len(part)) // block_rows if len(scales) > 1 else torch.zeros(1).long()
        part = part.unflatten(1, (G, -1)) if groups is None else part

        def spread(of_groups: Tensor, of_rows: Tensor = of_rows) -> Tensor:
            own = of_groups[of_rows].float()
            return own[..., None] if groups is None else own[:, groups]

        part = part if zeros is None else part.sub_(spread(zeros))
        wide[start : start + step] = part.mul_(spread(scales)).view(-1, columns)
    return wide


def powers_of_two(exponents: Tensor) -> Tensor:
    """E8M0: exponents of 8 bits with bias 127 → float32."""
    return torch.ones(exponents.shape).ldexp_(exponents.view(torch.uint8).int() - 127)


def as_table(scales: Tensor) -> Tensor:
    """One scale, or one a row, as a table of rows and columns; E8M0 as numbers."""
    if scales.dtype in (torch.uint8, torch.float8_e8m0fnu):
        scales = powers_of_two(scales)
    return scales.reshape(-1, 1) if scales.dim() < 2 else scales


def each_expert(codes: Tensor, scales: Tensor, read: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """What `read` makes of a weight, or of those of all experts that are stacked."""
    if codes.dim() < 3:
        return read(codes, as_table(scales))
    scales = scales if scales.dim() == 3 else scales.reshape(-1, 1, 1)
    scales = scales.expand(len(codes), *scales.shape[1:])
    return torch.stack([read(one, as_table(of_it)) for one, of_it in zip(codes, scales, strict=True)])


# ------------------------------------------------------------------------------------------- one function a format


def from_gptq(stored: Stored) -> FewBits:
    """Codes in the rows of `(I · bits / 32, O)`, scales `(G, O)`, zero points `(G, O · bits / 32)`, and each column's
    group `(I,)`, which activation order mixes (Frantar et al. 2022, https://arxiv.org/abs/2210.17323)."""
    packed, scales, groups = stored.fetch(".qweight"), stored.fetch(".scales"), stored.get(".g_idx")
    G, rows = scales.shape
    if groups is None:
        bits = stored.how.bits[0] if stored.how.bits else 4
        columns = packed.size(0) * 32 // bits
        groups = torch.arange(columns) // (stored.how.group_size or columns)
    else:  # which says the number of columns, so that some layers may have other bits than most
        bits = round(packed.size(0) * 32 / max(1, len(groups)))
    if bits not in (2, 3, 4, 8) or packed.size(0) != -(-len(groups) * bits // 32):
        raise stored.refuse(f"{packed.size(0)} words a row can't hold {len(groups)} columns")
    codes = unpack_bits(packed.t(), bits, len(groups))  # (O, I)
    packed_zeros = stored.fetch(".qzeros")
    if stored.how.zeros_less_one:
        packed_zeros = _plus_one(packed_zeros, bits)
    zeros = unpack_bits(packed_zeros, bits, rows)  # (G, O)
    return FewBits(codes, scales.t(), zeros.t(), _checked_groups(groups, G, stored))


def _plus_one(words: Tensor, bits: int) -> Tensor:
    """One more in each code; carries go into the next one, as the subtraction's had."""
    if 32 % bits == 0:
        ones = sum(1 << shift for shift in range(0, 32, bits))
        return (words.long() + ones).bitwise_and(2**32 - 1).to(torch.uint32).view(torch.int32)
    count = words.size(-1) * 32 // bits
    codes = unpack_bits(words, bits, count) + 1 & 2**bits - 1
    return pack_bits(codes, bits)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """The inverse of `unpack_bits`: `(…, count)` uint8 → `(…, count · bits / 32)` int32, rounded up."""
    shifts = torch.arange(bits, dtype=torch.uint8)
    stream = (codes[..., None] >> shifts & 1).flatten(-2)  # a bit each
    stream = F.pad(stream, (0, -stream.size(-1) % 32)).unflatten(-1, (-1, 8))
    octets = (stream << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    return octets.contiguous().view(torch.int32)


def _checked_groups(groups: Tensor, G: int, stored: Stored) -> Tensor:
    groups = groups.long()
    if not 0 <= int(groups.min()) <= int(groups.max()) < G:
        raise stored.refuse(f"one of its columns is in group {int(groups.max())} of {G}")
    return groups


def from_awq(stored: Stored) -> FewBits:
    """Codes `(I, O / 8)` and zero points `(G, O / 8)`, eight a word in an order of their own, scales `(G, O)` (Lin et
    al. 2023, https://arxiv.org/abs/2306.00978)."""
    packed, scales = stored.fetch(".qweight"), stored.fetch(".scales")
    order = torch.arange(scales.size(1)).view(-1, 8)[:, AWQ_ORDER].flatten()

    def in_order(words: Tensor) -> Tensor:
        return unpack_bits(words, 4, scales.size(1))[:, order].t()

    return FewBits(in_order(packed), scales.t(), in_order(stored.fetch(".qzeros")))


def from_packed_integers(stored: Stored) -> FewBits:
    """compressed-tensors' `pack-quantized`: codes in the columns of `(O, I · bits / 32)`, the middle one zero, scales
    `(O, G)`, zero points `(O · bits / 32, G)`."""
    packed, scales = stored.fetch(".weight_packed"), as_table(stored.fetch(".weight_scale"))
    rows, columns = stored.fetch(".weight_shape").flatten().tolist()[-2:]
    fitting = [bits for bits in range(1, 9) if packed.shape == (rows, -(-columns * bits // 32))]
    fitting = [bits for bits in fitting if not stored.how.bits or bits in stored.how.bits]
    if len(fitting) != 1:
        raise stored.refuse(f"{tuple(packed.shape)} words can't hold {rows} by {columns} codes")
    bits, zeros, groups = fitting[0], stored.get(".weight_zero_point"), stored.get(".weight_g_idx")
    codes = unpack_bits(packed, bits, columns)
    if zeros is None:
        zeros = torch.full(scales.shape, 2 ** (bits - 1), dtype=torch.uint8)
    elif zeros.dtype == torch.int32:
        zeros = unpack_bits(zeros.t(), bits, rows).t()
    else:
        zeros = as_table(zeros).int() + 2 ** (bits - 1)
    if groups is not None:  # -1: not ordered by activation
        groups = _checked_groups(groups, scales.size(1), stored) if int(groups.min()) >= 0 else None
    return FewBits(codes, scales, zeros, groups)


def from_nvfp4(stored: Stored) -> Tensor:
    """Pairs of E2M1 codes `(O, I / 2)`, the low half first, FP8 scales of sixteen columns each, and one for all: what
    compressed-tensors divides by and modelopt multiplies with."""
    if ".weight_scale_2" in stored.parts:
        packed, scale = stored.fetch(".weight"), stored.fetch(".weight_scale_2").float().view(())
    else:
        packed, scale = stored.fetch(".weight_packed"), 1 / stored.fetch(".weight_global_scale").float().view(())
    scales = stored.fetch(".weight_scale").float() * scale
    return widen(unpack_bits(packed, 4, packed.size(1) * 2), scales, stored.dtype, values=FP4)


def from_mxfp4(stored: Stored) -> Tensor:
    """compressed-tensors' `mxfp4-pack-quantized`: as NVFP4, but powers of two scale 32 columns each."""
    packed, scales = stored.fetch(".weight_packed"), stored.fetch(".weight_scale")
    if scales.dtype not in (torch.uint8, torch.float8_e8m0fnu):
        raise stored.refuse("its scales are of no known kind")
    return widen(unpack_bits(packed, 4, packed.size(1) * 2), powers_of_two(scales), stored.dtype, values=FP4)


def from_mxfp4_experts(stored: Stored) -> Tensor:
    """gpt-oss: pairs of codes `(E, R, C / 32, 16)` and exponents `(E, R, C / 32)` → `(E, C, R)`."""
    blocks, exponents = stored.fetch("_blocks"), stored.fetch("_scales")
    wide = torch.empty(*blocks.shape[:2], blocks.size(2) * 32, dtype=stored.dtype)
    for expert, (codes, scales) in enumerate(zip(blocks, exponents, strict=True)):
        packed = codes.flatten(1)
        wide[expert] = widen(
            unpack_bits(packed, 4, packed.size(1) * 2), powers_of_two(scales), stored.dtype, values=FP4
        )
    return wide.mT


def from_scaled(stored: Stored) -> Tensor | FewBits:
    """8 bits, whole or floating-point numbers, with a scale (and perhaps a zero point) for all, each row, or each group
    or block of some: compressed-tensors, FBGEMM, modelopt."""
    codes, scales, zeros = stored.fetch(".weight"), stored.fetch(".weight_scale"), stored.get(".weight_zero_point")
    if codes.dtype.itemsize > 1:
        raise stored.refuse(f"yet holds numbers of the type {str(codes.dtype).removeprefix('torch.')} beside a scale")
    if zeros is not None and zeros.any():
        return FewBits(codes, as_table(scales), as_table(zeros))
    if codes.dim() == 2 and not codes.is_floating_point() and len(as_table(scales)) in (1, len(codes)):
        return FewBits(codes, as_table(scales))
    return from_blocks(codes, scales, stored)


def from_blocks(codes: Tensor, scales: Tensor, stored: Stored) -> Tensor:
    """`(O, I)`, or `(E, O, I)`, and one scale, one a row, one a group of a row, or one a block."""
    block_rows, block_columns = stored.how.block

    def read(codes: Tensor, scales: Tensor) -> Tensor:
        rows, columns = codes.shape
        if scales.shape == (-(-rows // block_rows), -(-columns // block_columns)):
            groups = torch.arange(columns) // block_columns
            return widen(codes, scales, stored.dtype, groups=groups, block_rows=block_rows)
        if scales.numel() != 1 and (len(scales) != rows or columns % max(1, scales.size(1))):
            shape = f"{rows} by {columns} in blocks of {block_rows} by {block_columns}"
            raise stored.refuse(f"{tuple(scales.shape)} scales don't fit {shape}")
        return widen(codes, scales, stored.dtype)

    return each_expert(codes, scales, read)


def from_bitsandbytes_4bit(stored: Stored) -> Tensor:
    """Pairs of codes, the high half first, of values in a table; blocks of the flattened weight share a scale, which
    may be in 8 bits itself (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)."""
    state = json.loads(bytes(stored.fetch(next(part for part in stored.parts if "quant_state" in part)).tolist()))
    octets = stored.fetch(".weight").contiguous().view(torch.uint8).flatten()
    scales, size, shape = stored.fetch(".weight.absmax"), int(state["blocksize"]), torch.Size(state["shape"])
    nested = stored.get(".weight.nested_absmax")
    if nested is not None:
        of_scales, blocks = stored.fetch(".weight.nested_quant_map"), torch.arange(len(scales))
        scales = of_scales[scales.int()] * nested[blocks // int(state["nested_blocksize"])] + state["nested_offset"]
    if size < 1 or not 0 <= len(octets) * 2 - shape.numel() < 2 or len(scales) != -(-shape.numel() // size):
        raise stored.refuse(f"{len(octets)} bytes can't hold {tuple(shape)}")
    codes = torch.stack((octets >> 4, octets & 15), dim=1).flatten()[: shape.numel()]
    codes = F.pad(codes, (0, -len(codes) % size)).view(-1, size)
    wide = widen(codes, scales.view(-1, 1), stored.dtype, values=stored.fetch(".weight.quant_map").float())
    return wide.flatten()[: shape.numel()].view(shape)


def from_bitsandbytes_8bit(stored: Stored) -> FewBits:
    """127ths of the largest weight of a row (LLM.int8(), Dettmers et al. 2022, https://arxiv.org/abs/2208.07339)."""
    return FewBits(stored.fetch(".weight"), as_table(stored.fetch(".SCB").float() / 127))


def from_torchao(stored: Stored) -> FewBits:
    """torchao's Float8Tensor, Int8Tensor and IntxUnpackedToInt8Tensor: 8 bits, and scales for blocks whose sizes follow
    from the shapes."""
    codes, scales, zeros = (stored.get(f"._weight_{part}") for part in ("qdata", "scale", "zero_point"))
    assert codes is not None and scales is not None
    if (
        codes.dtype not in (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
        or "._weight_act_pre_scale" in stored.parts
    ):
        raise stored.refuse("read of torchao are Float8Tensor, Int8Tensor and IntxUnpackedToInt8Tensor")
    scales = as_table(scales)
    block_rows = max(1, codes.size(0) // scales.size(0)) if scales.size(0) > 1 else 1
    return FewBits(codes, scales, None if zeros is None else as_table(zeros), block_rows=block_rows)


def _with_inverse(mark: str) -> Callable[[Stored], Tensor]:
    """FP8 with a scale for each block, or for all (DeepSeek-V3, https://arxiv.org/abs/2412.19437, 3.3)."""
    return lambda stored: from_blocks(stored.fetch(mark), stored.fetch(f"{mark}_scale_inv"), stored)


OF_INPUTS = (".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale", ".activation_scale")
"""Scales of what goes into a layer, which stays in 16 bits here."""
NF4, FP4_STATE = (f".weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
NESTED = (".weight.nested_absmax", ".weight.nested_quant_map")
FORMATS = (
    Format(".qweight", (".qzeros", ".scales"), from_awq, (".bias_scale",), methods=("awq",)),
    Format(".qweight", (".qzeros", ".scales"), from_gptq, (".g_idx",)),
    Format(".weight_packed", (".weight_scale", ".weight_global_scale"), from_nvfp4, OF_INPUTS),
    Format(
        *(".weight_packed", (".weight_scale", ".weight_shape"), from_packed_integers),
        (".weight_zero_point", ".weight_g_idx", *OF_INPUTS),
    ),
    Format(".weight_packed", (".weight_scale",), from_mxfp4, OF_INPUTS),
    Format(".weight", (".weight_scale", ".weight_scale_2"), from_nvfp4, OF_INPUTS),
    Format(".weight", (".weight_scale",), from_scaled, (".weight_zero_point", *OF_INPUTS)),
    Format(".weight", (".weight.absmax", ".weight.quant_map", NF4), from_bitsandbytes_4bit, NESTED),
    Format(".weight", (".weight.absmax", ".weight.quant_map", FP4_STATE), from_bitsandbytes_4bit, NESTED),
    Format(".weight", (".SCB",), from_bitsandbytes_8bit, (".weight_format",)),
    Format(".weight", (".weight_scale_inv",), _with_inverse(".weight"), OF_INPUTS),
    Format("", ("_scale_inv",), _with_inverse(""), weight=""),
    Format("_blocks", ("_scales",), from_mxfp4_experts, weight=""),
    Format(
        *("._weight_qdata", ("._weight_scale",), from_torchao),
        ("._weight_zero_point", "._weight_act_quant_scale", "._weight_act_quant_zero_point", "._weight_act_pre_scale"),
    ),
)
"""The first that fits counts."""
