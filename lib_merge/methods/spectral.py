"""Core methods: singular values and subspaces, in the small space that the sources span together.

τᵢ = wᵢΔWᵢ = P·Mᵢ·Qᵀ; each function returns the merged core, Float64[a b], its SVD, or factors of the columns
of Σ τᵢ. Everything that commutes with orthonormal bases is exact here and of rank ≤ Σ rᵢ. Two conventions
differ from reference code written for full fine-tunes, where they would fill empty directions: every source
keeps its own rank rᵢ, and means over singular values run over the directions that exist.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib_merge.linalg import tolerances
from lib_merge.linalg.svd import Triplets, block_diagonal, gram_values, polar, solve, svd
from lib_merge.methods.inputs import ColumnInput, CoreInput
from lib_merge.methods.registry import Complaint, Gives, Knob, Space, merge_method


@merge_method(
    "tsv",
    title="TSV-Merge",
    sentence=(
        "Makes the directions of all LoRAs orthogonal before adding them, so that they disturb "
        "each other less."
    ),
    paper="https://arxiv.org/abs/2412.00081",
    space=Space.CORE,
    sources=(2, None),
)
def tsv(given: CoreInput) -> Triplets:
    """Task Singular Vectors (Gargiulo et al. 2024): Û·Σ·V̂ᵀ with Û, V̂ the polar factors of [U₁ | U₂ | …],
    [V₁ | V₂ | …].

    Each source keeps all its rᵢ triplets.
    Source: arXiv:2412.00081, Algorithm 1.
    """
    lefts, values, rights = zip(*(given.svd(source) for source in range(len(given.cores))))
    return polar(torch.cat(lefts, 1)), torch.cat(values), polar(torch.cat(rights, 0).T).T


def _flattened(values: Tensor, lam: float) -> Tensor:
    """Blend of a spectrum with its mean: S^(1−λ)·σ̄^λ."""
    return values.pow(1.0 - lam) * values.mean().pow(lam)


_LAM = Knob(
    name="lam",
    default=0.5,
    help="0 is the plain sum, 1 gives every direction the same strength (λ).",
    minimum=0.0,
    maximum=1.0,
    step=0.05,
)


@merge_method(
    "iso_c",
    title="Iso-C",
    sentence=(
        "Evens out how strong the directions of the sum are, so that faint traits of a LoRA come through."
    ),
    paper="https://arxiv.org/abs/2502.04959",
    space=Space.CORE,
    knobs=(_LAM,),
)
def iso_c(given: CoreInput, *, lam: float) -> Triplets:
    """Isotropic merging (Marczak et al. 2025): U·S^(1−λ)σ̄^λ·Vᵀ of Σ τᵢ, σ̄ the mean over its R singular
    values.

    λ = 1 is the paper's method, λ = 0 the sum.
    Source: arXiv:2502.04959, §4.1.
    """
    left, values, right = svd(given.cores.sum(0))
    return left, _flattened(values, lam), right


@merge_method(
    "iso_cts",
    title="Iso-CTS",
    sentence="Iso-C that also reserves directions for what only one LoRA knows.",
    paper="https://arxiv.org/abs/2502.04959",
    space=Space.CORE,
    sources=(2, None),
    symmetric=False,
    knobs=(
        _LAM,
        Knob(
            name="common",
            default=0.8,
            help="Share of the directions taken from the sum; the rest belong to single LoRAs (k/r).",
            minimum=0.0,
            maximum=1.0,
            step=0.05,
        ),
    ),
)
def iso_cts(given: CoreInput, *, lam: float, common: float) -> Triplets:
    """Isotropic merging in common and task-specific subspaces (Marczak et al. 2025), within the R directions
    of Σ τᵢ.

    The top ⌈common·R⌉ directions of the sum stay; each source adds its strongest directions outside of them,
    the rest of R
    split evenly (first sources take the remainder, hence the order matters); U and V are orthogonalised by
    polar factors and the spectrum is blended as in Iso-C.
    Source: arXiv:2502.04959, Algorithm 2.
    """
    left, values, right = svd(given.cores.sum(0))
    rank = len(values)
    shared = min(rank, int(-(-common * rank // 1)))
    ups, sizes, downs = [left[:, :shared]], [values[:shared]], [right[:shared]]
    for index, core in enumerate(given.cores):
        own = (rank - shared) // len(given.cores) + (index < (rank - shared) % len(given.cores))
        rest = core - left[:, :shared] @ (left[:, :shared].T @ core)
        u, s, v = svd(rest - (rest @ right[:shared].T) @ right[:shared], own)
        ups.append(u)
        sizes.append(s)
        downs.append(v)
    return polar(torch.cat(ups, 1)), _flattened(torch.cat(sizes), lam), polar(torch.cat(downs, 0).T).T


@merge_method(
    "svc",
    title="Singular value calibration",
    sentence=(
        "Turns down the directions that several LoRAs push at once and would otherwise be counted twice."
    ),
    paper="https://arxiv.org/abs/2602.05536",
    space=Space.CORE,
    sources=(2, None),
    knobs=(
        Knob(
            name="floor",
            default=1.0,
            help="Least count a source gets in a direction (α); lower turns more up.",
            minimum=0.1,
            maximum=2.0,
            step=0.05,
        ),
    ),
)
def svc(given: CoreInput, *, floor: float) -> Triplets:
    """SVC (arXiv:2602.05536): with Σ τᵢ = Σ uᵣσᵣvᵣᵀ, σᵣ ← σᵣ·K/Σᵢ max(α, sᵣⁱ), sᵣⁱ = ⟨uᵣᵀM, uᵣᵀτᵢ⟩/‖uᵣᵀτᵢ‖².

    K counts the sources with any share of uᵣ; the others are left out of the sum.
    """
    merged = given.cores.sum(0)
    left, values, right = svd(merged)
    if not len(values):
        return left, values, right
    whole = left.T @ merged  # Float64[R b]
    shares = torch.stack([left.T @ core for core in given.cores])  # Float64[source R b]
    sizes = shares.square().sum(2)
    counted = sizes > (tolerances.SVD_TINY * values[0]) ** 2
    overlap = (shares * whole).sum(2) / torch.where(counted, sizes, 1.0)
    total = torch.where(counted, overlap.clamp_min(floor), 0.0).sum(0)
    gamma = torch.where(total > 0, counted.sum(0) / total.clamp_min(tolerances.SVD_TINY), 1.0)
    return left, values * gamma, right


@merge_method(
    "pico",
    title="Pico",
    sentence=(
        "Damps the output directions that all LoRAs share, so that the loudest one does not drown the others."
    ),
    paper="https://arxiv.org/abs/2604.16826",
    space=Space.CORE,
    sources=(2, None),
    knobs=(
        Knob("compensate", True, "Scale the result to the mean norm of the sources; off: leave it damped."),
    ),
)
def pico(given: CoreInput, *, compensate: bool) -> Tensor:
    """Pico (arXiv:2604.16826): (I + U·diag(α − 1)·Uᵀ)·Σ τᵢ with [B₁ | B₂ | …] = UΣVᵀ of balanced Bᵢ = UᵢSᵢ^½.

    αⱼ = 1/(1 + (T − 1)·cⱼ), cⱼ = σⱼ²/Σσ². `compensate` scales the result to the mean of ‖τᵢ‖.
    """
    merged = given.cores.sum(0)
    parts = [given.svd(source) for source in range(len(given.cores))]
    stack = torch.cat([left * values.sqrt() for left, values, _ in parts], 1)
    left, values, _ = svd(stack)
    if not len(values):
        return torch.zeros_like(merged)
    shares = values.square() / values.square().sum()
    alpha = 1.0 / (1.0 + (len(given.cores) - 1) * shares)
    damped = merged + (left * (alpha - 1.0)) @ (left.T @ merged)
    if not compensate:
        return damped
    size = torch.linalg.matrix_norm(damped)
    target = torch.linalg.matrix_norm(given.cores).mean()
    return damped * (target / size) if float(size) > 0 else damped


@merge_method(
    "np_lora",
    title="NP-LoRA (style and subject)",
    sentence="Keeps the style whole and moves the subject out of its way: choose which LoRA is which.",
    paper="https://arxiv.org/abs/2511.11051",
    space=Space.CORE,
    sources=(2, 2),
    roles=("style", "subject"),
    knobs=(
        Knob(
            name="mu",
            default=0.5,
            help="How far the subject gives way; 0 is the plain sum (μ).",
            minimum=0.0,
            maximum=10.0,
            step=0.1,
        ),
    ),
)
def np_lora(given: CoreInput, *, mu: float) -> Tensor:
    """Null-space projection (arXiv:2511.11051): τ_style + τ_subject·(I − μ/(1+μ)·V_sV_sᵀ), V_s the style's
    row space.
    """
    style, subject = (given.cores[given.roles.index(role)] for role in ("style", "subject"))
    _, _, right = given.svd(given.roles.index("style"))
    return style + subject - mu / (1.0 + mu) * (subject @ right.T) @ right


@merge_method(
    "decorrelated_sum",
    title="Decorrelated sum",
    sentence="Each LoRA acts on its own inputs as if it were alone; what they share is averaged "
    "instead of added twice. Try it "
    "when the plain sum looks over-baked.",
    paper="https://arxiv.org/abs/2503.08099",
    space=Space.CORE,
    sources=(2, None),
    knobs=(
        Knob(
            name="mu",
            default=0.25,
            help="1 is the plain sum, 0 separates fully (μ).",
            minimum=0.0,
            maximum=1.0,
            step=0.05,
        ),
        Knob("guard", True, "Never stronger than the plain sum, in norm or in any single direction."),
    ),
    helps={
        Complaint.MUDDY: "each LoRA keeps its own inputs to itself",
        Complaint.ARTEFACTS: "keeps the sources off each other's inputs",
        Complaint.WORSE: "another way to add",
    },
)
def decorrelated_sum(given: CoreInput, *, mu: float, guard: bool) -> Tensor | Triplets:
    """Data-free router: τ = B·D·K_μ⁻¹·A with K = AAᵀ, D = blockdiag(K), K_μ = μD + (1 − μ)K, balanced
    factors.

    μ = 0 solves WUDI's objective (τ acts as τᵢ on the row space of τᵢ), μ = 1 is Σ τᵢ. Factors are each
    source's own
    Bᵢ = UᵢSᵢ^½, Aᵢ = Sᵢ^½Vᵢᵀ. A file merged with itself at μ = 0 is itself. The guard scales the result down
    to the sum's norm and largest singular value.
    Source: normal equations of WUDI-Merging, arXiv:2503.08099, eq. 9.
    """
    parts = [given.svd(source) for source in range(len(given.cores))]
    merged = given.cores.sum(0)
    ups = torch.cat([left * values.sqrt() for left, values, _ in parts], 1)
    downs = torch.cat([values.sqrt()[:, None] * right for _, values, right in parts], 0)
    if not downs.shape[0]:
        return torch.zeros_like(merged)
    gram = downs @ downs.T
    own = block_diagonal([values.diag() for _, values, _ in parts])
    separated = ups @ own @ solve(mu * own + (1.0 - mu) * gram, downs)
    left, values, right = svd(separated)
    if not guard or not len(values):
        return separated
    norm, top = torch.linalg.matrix_norm(merged), gram_values(merged @ merged.T)[0]
    return left, values * min(1.0, float(norm / values.norm()), float(top / values[0])), right


@merge_method(
    "column_balanced",
    title="Column balanced (ZipLoRA-style)",
    sentence=(
        "Lowers only the inputs on which two LoRAs pull the same way; a quick relative of "
        "ZipLoRA without its training."
    ),
    paper="https://arxiv.org/abs/2311.13600",
    space=Space.CORE,
    gives=Gives.COLUMNS,
    sources=(2, 2),
)
def column_balanced(given: ColumnInput) -> Tensor:
    """Per column j of τ₁, τ₂: (τ₁ + τ₂)·diag(m), m = 1/(1 + cosⱼ) clamped to [½, 1], 1 where cosⱼ ≤ 0 or a
    column is zero.

    Returns m, Float64[in]. Weight-space relative of ZipLoRA (Shah et al. 2023), which learns m by denoising.
    """
    sizes = (given.products[0, 0] * given.products[1, 1]).clamp_min(0).sqrt()
    floor = tolerances.COLUMN_FLOOR * float(sizes.max()) if sizes.numel() else 0.0
    cosine = torch.where(sizes > floor, given.products[0, 1] / sizes.clamp_min(1e-300), 0.0)
    return 1.0 / (1.0 + cosine.clamp(0.0, 1.0))
