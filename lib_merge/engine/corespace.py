"""The common space of several deltas: τᵢ = P·Mᵢ·Qᵀ with singular bases P of [τ₁ | τ₂ | …] and Q of [τ₁; τ₂; …].

With stacked factors τᵢ = BᵢAᵢ everything follows from two R × R Gram matrices, K_B = BᵀB and K_A = AAᵀ, in float64: the left
Gram of [τ₁ | τ₂ | …] is B·D·Bᵀ with D = blockdiag(AᵢAᵢᵀ) = C·Cᵀ, so the eigenvectors W, Λ of Cᵀ·K_B·C give P = B·C·W·Λ^(−½);
the right side likewise, and Mᵢ = Pᵀ·Bᵢ·Aᵢ·Q from blocks of the Grams. The bases depend on the deltas alone, not on how these
are factored. A source whose factors are so ill-conditioned that Grams would lose it is brought to its SVD first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_merge.deltas import Delta, Dense, LowRank
from lib_merge.errors import NumericsError

# Directions below this share of the largest singular value are rounding, not signal.
NOISE = 1e-6
# ‖K_B‖‖K_A‖ / ‖τ‖² of a source beyond which its Grams are not trusted: float64 keeps four digits of that
ILL = 1e8
# the same for the whole stack, beyond which float32 products are not used
STEEP = 1e3


@dataclass(frozen=True, slots=True)
class CoreSpace:
    """P = B·to_left and Qᵀ = to_right·A, kept as products: nothing of the deltas' size is made before it is needed.

    cores     Float64[source a b], Mᵢ
    up        Float64[out R], B
    down      Float64[R in], A
    to_left   Float64[R a]
    to_right  Float64[b R]
    steep     the factors cancel so much that float32 products would show it
    """

    cores: Tensor
    up: Tensor
    down: Tensor
    to_left: Tensor
    to_right: Tensor
    steep: bool

    def rows(self) -> Tensor:
        """Return Qᵀ, Float64[b in]."""
        return self.to_right @ self.down

    def from_left(self, matrix: Tensor) -> Tensor:
        """Return P·matrix, Float[out k]."""
        return self._product(self.up, self.to_left @ matrix)

    def to_rows(self, matrix: Tensor) -> Tensor:
        """Return matrix·Qᵀ, Float[k in]."""
        return self._product(matrix @ self.to_right, self.down)

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        return (left @ right).float() if self.steep else left.float() @ right.float()


def core_space(deltas: Sequence[Delta]) -> CoreSpace:
    """Return the common space of deltas that already carry their weights; at least one basis vector a side is kept.

    Raises:
        NumericsError: a delta holds NaN or infinity.
    """
    pairs = [_factors(delta) for delta in deltas]
    up, down = torch.cat([pair[0] for pair in pairs], 1), torch.cat([pair[1] for pair in pairs], 0)
    gram_up, gram_down = up.T @ up, down @ down.T
    edges = torch.tensor([0, *(pair[1].shape[0] for pair in pairs)]).cumsum(0).tolist()
    blocks = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
    to_left = _basis(gram_up, gram_down, blocks)
    to_right = _basis(gram_down, gram_up, blocks)
    if to_left is None or to_right is None:
        zero = torch.zeros(len(deltas), 1, 1, dtype=torch.float64)
        return CoreSpace(zero, up, down, up.new_zeros(up.shape[1], 1), down.new_zeros(1, down.shape[0]), steep=False)
    back = to_right.T
    cores = torch.stack([(to_left.T @ gram_up[:, part]) @ (gram_down[part] @ to_right) for part in blocks])
    size = float(torch.linalg.matrix_norm(gram_up) * torch.linalg.matrix_norm(gram_down))
    steep = size > STEEP * float(cores.square().sum())
    return CoreSpace(cores, up, down, to_left, back, steep)


def _factors(delta: Delta) -> tuple[Tensor, Tensor]:
    if isinstance(delta, Dense):
        matrix = delta.dense(dtype=torch.float64)
        _finite(float(matrix.square().sum()))
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        keep = int((values > NOISE * values[0]).sum())
        root = values[:keep].sqrt()
        return left[:, :keep] * root, right[:keep] * root[:, None]
    up, down = delta.factors(dtype=torch.float64)
    if not delta.terms:
        return up, down
    gram_up, gram_down = up.T @ up, down @ down.T
    size = float((gram_up * gram_down).sum())
    _finite(size)
    if float(torch.linalg.matrix_norm(gram_up) * torch.linalg.matrix_norm(gram_down)) <= ILL * size:
        return up, down
    return _canonical(delta, up, down)


def _finite(size: float) -> None:
    if not math.isfinite(size):
        message = "a delta holds NaN or infinity"
        raise NumericsError(message)


def _canonical(delta: LowRank, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    left, values, right = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    keep = int((values > NOISE * values[0]).sum()) if float(values[0]) > 0 else 0
    root = values[:keep].sqrt()
    return q_up @ (left[:, :keep] * root), (root[:, None] * right[:keep]) @ q_down.T


def _basis(own: Tensor, other: Tensor, blocks: Sequence[slice]) -> Tensor | None:
    """Return T [R a] such that B·T is the singular basis of the concatenation; None where everything is zero."""
    root = torch.zeros_like(other)
    for part in blocks:
        if part.stop > part.start:
            values, vectors = torch.linalg.eigh(other[part, part])
            root[part, part] = vectors * values.clamp_min(0).sqrt()
    values, vectors = torch.linalg.eigh(root.T @ own @ root)
    values, vectors = values.flip(0), vectors.flip(1)
    if not values.numel() or not float(values[0]) > 0:
        return None
    keep = int((values > NOISE**2 * values[0]).sum())
    return root @ (vectors[:, :keep] * values[:keep].rsqrt())
