"""The proof: the finished file is opened again and held against what was asked, module by module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lib_merge.adapters import open_lora
from lib_merge.engine.evaluate import Evaluator
from lib_merge.engine.plan import Node, Target
from lib_merge.engine.report import ModuleReport, Report
from lib_merge.engine.threads import in_order
from lib_merge.errors import NumericsError, VerifyError
from lib_merge.linalg import Dense, LowRank, difference_norm, norm, tolerances

if TYPE_CHECKING:
    from lib_merge.engine.run import _Run


def rounding(precision: str) -> float:
    """Return the relative Frobenius error that one rounding of both factors can add."""
    return {"fp16": tolerances.PROOF_FP16, "bf16": tolerances.PROOF_BF16, "float": tolerances.PROOF_FLOAT}[
        precision
    ]


def measure(
    node: Node, evaluator: Evaluator, saved: Path, targets: Sequence[Target], run: _Run
) -> list[ModuleReport]:
    """Return ‖saved − asked‖ and ‖asked‖ of every module, from freshly read sources.

    Args:
        node: the tree.
        evaluator: reads and combines the sources again.
        saved: the file to hold against it.
        targets: the modules asked for; one that the file lacks is measured as zero.
        run: progress and cancel.
    """
    with open_lora(saved, node.family) as merged:
        parts = merged.parts()

        def one(target: Target) -> ModuleReport:
            asked = evaluator.asked(node, target) if target.columns else LowRank(target.out, 0)
            part = parts.get(target.name)
            found = part.load(merged.file) if part is not None and part.columns else None
            if found is None:
                size = norm(asked) if target.columns else 0.0
                return ModuleReport(target.name, target.block, 0, size, 0.0, size)
            error, size = difference_norm(found, asked)
            rank = 0 if isinstance(found, Dense) else found.rank
            return ModuleReport(target.name, target.block, rank, error, 0.0, size)

        reports = []
        for done, report in enumerate(
            in_order(run.blaming(one), targets, evaluator.device, run.job.cancelled), 1
        ):
            reports.append(report)
            run.job.tell("verify", done, len(targets))
        return reports


def prove(run: _Run, saved: Path, targets: Sequence[Target]) -> list[ModuleReport]:
    """Measure the temporary file of a running merge and note what the rank policy cut."""
    memo = run.evaluator.memo and replace(run.evaluator.memo, proving=id(run.node))
    evaluator = replace(run.evaluator, clock=type(run.clock)(), memo=memo)
    with run.clock.time("verify"):
        reports = measure(run.node, evaluator, saved, targets, run)
    for report in reports:
        report.cut = run.cuts.get(report.name, report.cut)
    return reports


def off_target(run: _Run, report: Report) -> list[ModuleReport]:
    """Return the modules whose measured error is larger than what was cut and one rounding explain.

    Raises:
        NumericsError: NaN in the saved file; names the source it came from.
    """
    tolerance = rounding(report.precision)
    largest = max((module.size for module in report.modules), default=0.0)
    found = []
    for module in report.modules:
        if not math.isfinite(module.error) or not math.isfinite(module.size):
            raise run.blame(run.node.targets[module.name], NumericsError(module.name))
        allowed = math.hypot(module.cut * tolerances.CUT_SLACK, tolerance * module.size)
        if module.error > allowed + tolerances.PROOF_FLOOR * largest:
            found.append(module)
    return found


def check_proof(run: _Run, report: Report) -> None:
    """Refuse a file that is not what was asked.

    Raises:
        NumericsError: NaN in the saved file.
        VerifyError: a module is off target.
    """
    for module in off_target(run, report)[:1]:
        message = (
            f"{module.name} differs from what was asked by {module.relative:.3%}, more than the "
            "rank or the rounding "
            "explains: the file is not what its recipe makes."
        )
        raise VerifyError(message)
