"""The proof: a file is opened again and held against what was asked, module by module.

A merge proves its file while it is still temporary. `verify` does the same with a file saved long ago, from
the recipe that it carries.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from lib_merge.adapters import open_lora
from lib_merge.engine.evaluate import blame, over_modules
from lib_merge.engine.job import Job, pick_device
from lib_merge.engine.report import MergeReport, ModuleReport, peak_rss_mb
from lib_merge.engine.survey import Plan, survey
from lib_merge.engine.threads import exact_numerics
from lib_merge.engine.tree import Node, Target, Tree, open_tree, written
from lib_merge.errors import VerifyError
from lib_merge.files.hashes import data_hash
from lib_merge.files.reader import SafetensorsFile
from lib_merge.linalg import Dense, LowRank, difference_norm, norm, tolerances
from lib_merge.linalg.truncate import compress
from lib_merge.recipe import Recipe


def rounding(precision: str) -> float:
    """Return the relative Frobenius error that one rounding of both factors can add."""
    allowed = {"fp16": tolerances.PROOF_FP16, "bf16": tolerances.PROOF_BF16, "float": tolerances.PROOF_FLOAT}
    return allowed[precision]


def prove(saved: Path, tree: Tree, plan: Plan, job: Job) -> list[ModuleReport]:
    """Return ‖saved − asked‖ and ‖asked‖ of every module, from freshly read sources.

    Args:
        saved: the file to hold against the tree; a module that it lacks is measured as zero.
        tree: says what is asked.
        plan: what is known of the whole, and what the rank policy cuts at every module.
        job: progress and cancel.
    Raises:
        NumericsError: NaN in a source.
        Cancelled: the job was.
    """
    node, evaluator = tree.root, plan.evaluator.proving(tree.root)
    targets = list(node.targets.values())
    with plan.evaluator.clock.time("verify"), open_lora(saved, node.family) as merged:
        parts = merged.parts()

        def measure(target: Target) -> ModuleReport:
            asked = evaluator.asked(node, target) if target.columns else LowRank(target.out, 0)
            cut = plan.cuts.get(target.name, 0.0)
            part = parts.get(target.name)
            if part is None or not part.columns:
                size = norm(asked) if target.columns else 0.0
                return ModuleReport(
                    name=target.name, block=target.block, rank=0, error=size, cut=cut, size=size
                )
            delta = part.load(merged.file)
            error, size = difference_norm(delta, asked)
            rank = 0 if isinstance(delta, Dense) else delta.rank
            return ModuleReport(
                name=target.name, block=target.block, rank=rank, error=error, cut=cut, size=size
            )

        return list(over_modules(measure, targets, node, evaluator.device, job, stage="verify"))


def off_target(modules: Sequence[ModuleReport], node: Node) -> list[ModuleReport]:
    """Return the modules whose measured error is larger than what was cut and one rounding explain.

    Raises:
        NumericsError: NaN in the saved file; names the source it came from.
    """
    tolerance = rounding(node.recipe.precision)
    largest = max((module.size for module in modules), default=0.0)
    off = []
    for module in modules:
        if not math.isfinite(module.error) or not math.isfinite(module.size):
            raise blame(node, node.targets[module.name])
        allowed = math.hypot(module.cut * tolerances.CUT_SLACK, tolerance * module.size)
        if module.error > allowed + tolerances.PROOF_FLOOR * largest:
            off.append(module)
    return off


def check_proof(modules: Sequence[ModuleReport], node: Node) -> None:
    """Refuse a file that is not what was asked.

    Raises:
        NumericsError: NaN in the saved file.
        VerifyError: a module is off target.
    """
    for module in off_target(modules, node)[:1]:
        message = (
            f"{module.name} differs from what was asked by {module.relative:.3%}, more than the "
            "rank or the rounding "
            "explains: the file is not what its recipe makes."
        )
        raise VerifyError(message)


# ---------------------------------------------------------------- a file saved long ago


def verify(merged: Path, recipe: Recipe, job: Job) -> MergeReport:
    """Return the measured report of `merged` against `recipe`.

    What the rank policy may cut is computed afresh, so that a tampered tensor cannot hide behind it.

    Raises:
        VerifyError: a module differs, is missing or was added.
    """
    start = time.perf_counter()
    device = pick_device(job.device)
    with open_tree(recipe, drop_unsupported=True) as tree, exact_numerics(device):
        node = tree.root
        report = MergeReport.of(node, merged)
        plan = survey(tree, device, job)
        plan.cuts = _cuts(tree, plan, job)
        _same_modules(merged, node)
        report.modules = prove(merged, tree, plan, job)
        _still_numbers(merged, report)
        check_proof(report.modules, node)
    with open_lora(merged).file as opened:
        report.bytes = opened.size
        if isinstance(opened, SafetensorsFile):
            report.tensor_hash = data_hash(merged, opened.data_start)
    report.seconds = {**plan.evaluator.clock.seconds, "total": time.perf_counter() - start}
    report.peak_rss_mb = peak_rss_mb()
    return report


def _cuts(tree: Tree, plan: Plan, job: Job) -> dict[str, float]:
    """Return what the rank policy cuts at every module."""
    node, evaluator = tree.root, plan.evaluator

    def cut(target: Target) -> tuple[str, float]:
        if target.name in plan.kept.dropped:
            return target.name, plan.kept.norms[target.name]
        policy = plan.kept.policy_at(node, target)
        if policy.exact or not target.columns:
            return target.name, 0.0
        return target.name, compress(evaluator.asked(node, target), policy, evaluator.device).cut

    return dict(over_modules(cut, list(node.targets.values()), node, evaluator.device, job))


def _still_numbers(merged: Path, report: MergeReport) -> None:
    """Sources are sound here: a NaN came into the merged file after it was saved."""
    for module in report.modules:
        if math.isfinite(module.size) and not math.isfinite(module.error):
            message = (
                f"{module.name} of {merged.name} holds NaN or infinity: the file is not what "
                "its recipe makes."
            )
            raise VerifyError(message)


def _same_modules(merged: Path, node: Node) -> None:
    with open_lora(merged, node.family) as opened:
        foreign = sorted(set(opened.modules) - {target.name for target in written(node)})
    if foreign:
        message = (
            f"{merged.name} has {len(foreign)} modules that its recipe does not make, {foreign[0]} first."
        )
        raise VerifyError(message)
