"""From a finished ΔW to the tensors of the file: kohya keys, alpha = rank, one cast.

A lossless sum keeps the sources' own factors: `down` goes to the file as the bytes it was read as, `up` is
scaled once. That is exact but for one rounding of one factor, needs no arithmetic on half of the data, and
makes a lossless merge a copy. Only where scaling would leave the precision's range are the two factors
balanced by a power of two, which rounds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lib_merge.adapters import LoraFile
from lib_merge.engine.room import embeddings
from lib_merge.engine.tree import Target
from lib_merge.errors import NumericsError
from lib_merge.files.header import name_of
from lib_merge.files.writer import StreamWriter, tensor_bytes
from lib_merge.linalg import Dense, LowRank, Term
from lib_merge.linalg.truncate import Compressed

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "float": torch.float32}
# factors are balanced when the largest entry of one leaves this range: fp16 is normal from 6e-5 to 65504
_LOW, _HIGH = 2.0**-7, 2.0**13


@dataclass(slots=True)
class Encoded:
    """Tensors of one module, in file order, ready for the writer.

    entries    (key, dtype name, shape, buffers)
    rank       ranks saved; 0 for a whole matrix or vectors only
    cut, size  ‖what was cut‖, ‖ΔW‖
    dropped    why the matrix is not there; "" where it is
    filler     zeros that a loader wants, and nothing else
    """

    rank: int = 0
    entries: list[tuple[str, str, tuple[int, ...], list[Any]]] = field(default_factory=list)
    cut: float = 0.0
    size: float = -1.0
    dropped: str = ""
    filler: bool = False

    def put(self, key: str, value: Tensor) -> None:
        """Append a tensor."""
        self.entries.append((key, name_of(value.dtype), tuple(value.shape), [tensor_bytes(value)]))


def encode_terms(target: Target, delta: LowRank, dtype: torch.dtype, *, alpha: bool = True) -> Encoded:
    """Encode a sum of terms as it is: ranks side by side.

    Args:
        target: the module.
        delta: the terms.
        dtype: of the file.
        alpha: False for a spelling without: loaders then take it for the rank.
    Raises:
        NumericsError: a number does not fit the precision, or a source holds NaN.
    """
    done = Encoded(delta.rank)
    number, correction = _alpha(delta.rank, dtype) if alpha else (None, 1.0)
    ups = torch.empty((delta.out, delta.rank), dtype=dtype)
    downs: list[Tensor] = []
    at, sure = 0, True
    for term in delta.terms:
        place = ups[:, at : at + term.rank]
        down, inside = _term(Term(term.scale * correction, term.up, term.down), place, dtype)
        downs.append(down)
        sure = sure and inside
        at += term.rank
    if not sure:
        _check(ups, target.name)
    if number is not None:
        done.put(f"{target.name}.alpha", number)
    shape = _down_shape(target, delta.rank)
    buffers = [tensor_bytes(down) for down in downs]
    done.entries.append((f"{target.name}.lora_down.weight", name_of(dtype), shape, buffers))
    done.put(f"{target.name}.lora_up.weight", ups.reshape(_up_shape(target, delta.rank)))
    return done


def _term(term: Term, place: Tensor, dtype: torch.dtype) -> tuple[Tensor, bool]:
    """Write scale·up into its columns; return `down` as it is saved, and whether `up` is known to be
    finite.
    """
    up, down = term.up, term.down
    largest = _largest(up) * abs(term.scale) if dtype == torch.float16 else 0.0
    other = _largest(down) if largest > 0 and down.dtype != dtype else _LOW
    inside = _LOW <= largest <= _HIGH and _LOW <= other <= _HIGH
    if largest > 0 and not inside:
        power = _balance(largest, _largest(down))
        place.copy_(up.float() * (term.scale * power))
        return (down.float() / power).to(dtype), False
    if up.dtype == dtype:  # torch multiplies half precision in float32 and rounds once
        torch.mul(up, term.scale, out=place) if term.scale != 1.0 else place.copy_(up)
    else:
        place.copy_(up.float() * term.scale if term.scale != 1.0 else up)
    return (down if down.dtype == dtype else down.to(dtype)), inside


def _largest(value: Tensor) -> float:
    """Return the largest magnitude; NaN where there is one, 0 of an empty tensor."""
    if not value.numel():
        return 0.0
    low, high = torch.aminmax(value)  # one pass and no copy; of a NaN both are NaN
    return max(-float(low), float(high))


def _lift(done: Compressed) -> float:
    """Return the power of two that takes both factors' largest entries to 2⁻⁷, as far as an fp16 alpha can
    undo it.
    """
    largest = min(float(done.up.abs().max()), float(done.down.abs().max()))
    return 2.0 ** min(7, math.ceil(math.log2(_LOW / largest))) if 0 < largest < _LOW / 16 else 1.0


def _alpha(rank: int, dtype: torch.dtype, lift: float = 1.0) -> tuple[Tensor, float]:
    """Return alpha = rank/lift² as it is saved, and what `up` must be multiplied with where the type cannot
    hold it.

    bf16 has no 257 and fp16 no 2049: the loader's alpha/rank would then be off, so `up` takes the difference.
    """
    alpha = torch.tensor(rank / lift**2, dtype=dtype)
    return alpha, rank / lift**2 / float(alpha)


def _balance(up: float, down: float) -> float:
    """Return the power of two that brings the largest entries of both factors nearest to each other."""
    return 2.0 ** round(math.log2(down / up) / 2) if 0 < down < math.inf and up < math.inf else 1.0


def encode_factors(target: Target, done: Compressed, dtype: torch.dtype, *, alpha: bool = True) -> Encoded:
    """Encode recomputed factors; √S sits on both, so that both use the precision's range well.

    A delta so faint that even √S leaves the normal numbers of fp16 (a model stock of strangers) is saved
    larger by a power of two, and its alpha smaller by the same.
    """
    lift = _lift(done) if dtype == torch.float16 and alpha else 1.0
    number, correction = _alpha(done.rank, dtype, lift) if alpha else (None, 1.0)
    up = (done.up if correction == lift == 1.0 else done.up * (correction * lift)).to("cpu", dtype)
    down = (done.down if lift == 1.0 else done.down * lift).to("cpu", dtype)
    _check(up, target.name)
    _check(down, target.name)
    encoded = Encoded(done.rank, cut=done.cut, size=done.size)
    if number is not None:
        encoded.put(f"{target.name}.alpha", number)
    encoded.put(f"{target.name}.lora_down.weight", down.reshape(_down_shape(target, done.rank)))
    encoded.put(f"{target.name}.lora_up.weight", up.reshape(_up_shape(target, done.rank)))
    return encoded


def encode_for_training(target: Target, delta: LowRank, alpha: float, dtype: torch.dtype) -> Encoded:
    """Encode factors as a trainer would have begun them, so that training goes on where it left off.

    Trainers draw `down` from U(−1/√in, 1/√in) and start `up` at zero; learning rates are made for that size
    and for their alpha. So `down` gets the mean square 1/(3·in), `up` the rest, and alpha stays: the product
    is the same.

    Args:
        target: the module.
        delta: of it.
        alpha: as the sources have it.
        dtype: of the file.
    Raises:
        NumericsError: a number does not fit the precision.
    Source: kohya-ss/musubi-tuner#803, a merged LoRA that turned to noise when training went on.
    """
    up, down = delta.factors()
    size = float(down.square().mean().sqrt())
    factor = 1 / (math.sqrt(3 * delta.columns) * size) if size > 0 else 1.0
    number = torch.tensor(alpha, dtype=dtype)
    up, down = (up * (delta.rank / float(number) / factor)).to(dtype), (down * factor).to(dtype)
    _check(up, target.name)
    _check(down, target.name)
    encoded = Encoded(delta.rank)
    encoded.put(f"{target.name}.alpha", number)
    encoded.put(f"{target.name}.lora_down.weight", down.reshape(_down_shape(target, delta.rank)))
    encoded.put(f"{target.name}.lora_up.weight", up.reshape(_up_shape(target, delta.rank)))
    return encoded


def encode_matrix(target: Target, delta: Dense, dtype: torch.dtype) -> Encoded:
    """Encode a whole matrix as `.diff`, which every WebUI loads; of a norm's weight it has one axis."""
    matrix = delta.dense().to("cpu", dtype)
    _check(matrix, target.name)
    encoded = Encoded(0)
    encoded.put(f"{target.name}.diff", matrix.reshape(_full_shape(target)))
    return encoded


def encode_vectors(encoded: Encoded, target: Target, vectors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Add biases and norm weights, keeping the file's key order."""
    for role in sorted(vectors):
        value = vectors[role].to(dtype)
        _check(value, target.name)
        encoded.put(f"{target.name}.{role}", value)
    encoded.entries.sort(key=lambda entry: entry[0])


def _check(value: Tensor, name: str) -> None:
    if not math.isfinite(_largest(value)):
        raise NumericsError(name)


def _up_shape(target: Target, rank: int) -> tuple[int, ...]:
    return (target.out, rank, *(1 for _ in target.kernel))


def _down_shape(target: Target, rank: int) -> tuple[int, ...]:
    kernel = target.kernel
    area = math.prod(kernel) if kernel else 1
    return (rank, target.columns // area, *kernel)


def _full_shape(target: Target) -> tuple[int, ...]:
    return (target.out,) if target.one_axis else (target.out, *_down_shape(target, 1)[1:])


# ---------------------------------------------------------------- bundled textual inversions


def copy_embeddings(
    files: Sequence[LoraFile], dtype: torch.dtype, writer: StreamWriter, warnings: list[str]
) -> list[str]:
    """Write every embedding of every file; return the keys.

    Args:
        files: the sources.
        dtype: of the result.
        writer: receives the tensors, sorted by key.
        warnings: is told about renamed embeddings.
    """
    places, notes = embeddings(files)
    warnings.extend(note for note in notes if note not in warnings)
    for key in sorted(places):
        file, old = places[key]
        value = file.file.read(old).to(dtype)
        writer.add(key, name_of(value.dtype), tuple(value.shape), [tensor_bytes(value)])
    return sorted(places)
