"""SVD and polar factor of small matrices by one symmetric eigen-decomposition: half the time of LAPACK's SVD.

It squares the condition number, so it is used while the smallest direction asked for stays above `NARROW` of
the largest, where float64 keeps eight digits of it; below that LAPACK's SVD takes over.
"""

from __future__ import annotations

import torch
from torch import Tensor

Triplets = tuple[
    Tensor, Tensor, Tensor
]  # U with orthonormal columns, S, Vᵀ with orthonormal rows: a sum of triplets

# singular values below this share of the largest do not count as directions
TINY = 1e-6
# the share of the largest below which squares lose too much
NARROW = 1e-4


def svd(matrix: Tensor, most: int | None = None) -> Triplets:
    """Return the thin SVD of Float64[a b] without its empty directions: U [a k], S [k] descending, Vᵀ [k b].

    Args:
        matrix: any shape.
        most: how many directions are wanted; all by default.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    side = matrix.T if tall else matrix
    values, vectors = _eigen(side @ side.T)
    if not len(values) or not float(values[0]) > 0:
        return matrix[:, :0], values[:0], matrix[:0]
    keep = int((values > TINY**2 * values[0]).sum())
    keep = keep if most is None else min(keep, most)
    if keep and not float(values[keep - 1]) > NARROW**2 * float(values[0]):
        return _lapack(matrix, most)
    basis = vectors[:, :keep]
    rows = basis.T @ side
    size = torch.linalg.vector_norm(rows, dim=1)
    rows /= size[:, None]
    return (rows.T, size, basis.T) if tall else (basis, size, rows)


def _lapack(matrix: Tensor, most: int | None) -> Triplets:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    keep = int((values > TINY * values[0]).sum())
    keep = keep if most is None else min(keep, most)
    return left[:, :keep], values[:keep], right[:keep]


def product_svd(first: Tensor, second: Tensor) -> Triplets:
    """Return the SVD of first [a r] · second [r b], r small, without its empty directions."""
    if first.shape[1] >= second.shape[1]:
        return svd(first @ second)
    basis, triangle = torch.linalg.qr(second.T)
    left, values, right = svd(first @ triangle.T)
    return left, values, right @ basis.T


def polar(stack: Tensor) -> Tensor:
    """Return the orthonormal matrix nearest to Float64[a k]: U·Vᵀ of its thin SVD, by X·(XᵀX)^(−½)."""
    values, vectors = _eigen(stack.T @ stack)
    if len(values) and float(values[-1]) > NARROW**2 * float(values[0]):
        return stack @ ((vectors * values.rsqrt()) @ vectors.T)
    left, _, right = torch.linalg.svd(stack, full_matrices=False)
    return left @ right


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Return matrix⁻¹·right for a symmetric matrix [k k] that is positive; its pseudoinverse where it is not
    safely so.
    """
    lower, info = torch.linalg.cholesky_ex(matrix)
    steps = lower.diagonal()
    if not int(info) and float(steps.min()) > NARROW * float(steps.max()):
        return torch.cholesky_solve(right, lower)
    return torch.linalg.pinv(matrix, rtol=1e-10, hermitian=True) @ right


def _eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, descending, and eigenvectors."""
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0), vectors.flip(1)
