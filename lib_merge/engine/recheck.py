"""Verifying a merged file later, from the recipe it carries."""

from __future__ import annotations

import math
import time
from pathlib import Path

from lib_merge.adapters import open_lora
from lib_merge.engine.evaluate import module_policy
from lib_merge.engine.plan import Planner, Target
from lib_merge.engine.report import Report, peak_rss_mb
from lib_merge.engine.run import Job, _Run, pick_device, replace_sum
from lib_merge.engine.threads import exact_numerics, in_order
from lib_merge.engine.verify import check_proof, prove
from lib_merge.errors import VerifyError
from lib_merge.files.hashes import data_hash
from lib_merge.files.reader import SafetensorsFile
from lib_merge.linalg.truncate import compress
from lib_merge.recipe import Recipe


def verify(merged: Path, recipe: Recipe, job: Job) -> Report:
    """Return the measured report of `merged` against `recipe`.

    What the rank policy may cut is computed afresh, so that a tampered tensor cannot hide behind it.

    Raises:
        VerifyError: a module differs, is missing or was added.
    """
    start = time.perf_counter()
    device = pick_device(job.device)
    planner = Planner(open_lora, drop_unsupported=True)
    try:
        node = planner.build(recipe)
        with exact_numerics(device):
            run = _Run(node, planner.files, merged, job, device)
            run.survey()
            run.cuts = _cuts(run)
            targets = list(node.targets.values())
            _same_modules(merged, run)
            report = run.report
            report.modules = prove(run, merged, targets)
            _still_numbers(merged, report)
            check_proof(run, report)
    finally:
        for file in planner.files:
            file.close()
    with open_lora(merged).file as opened:
        report.bytes = opened.size
        if isinstance(opened, SafetensorsFile):
            report.tensor_hash = data_hash(merged, opened.data_start)
    report.seconds = {**run.clock.seconds, "total": time.perf_counter() - start}
    report.peak_rss_mb = peak_rss_mb()
    return report


def _cuts(run: _Run) -> dict[str, float]:
    """Return what the rank policy cuts at every module; modules that nothing was cut from are left out."""

    def one(target: Target) -> tuple[str, float]:
        if target.name in run.prune.dropped:
            return target.name, run.prune.norms[target.name]
        policy = run.prune.policy(target, module_policy(run.node, target))
        if policy.exact or not target.columns:
            return target.name, 0.0
        return target.name, compress(
            run.evaluator.asked(run.node, target), replace_sum(policy, target), run.device
        ).cut

    return dict(in_order(run.blaming(one), list(run.node.targets.values()), run.device, run.job.cancelled))


def _still_numbers(merged: Path, report: Report) -> None:
    """Sources are sound here: a NaN came into the merged file after it was saved."""
    for module in report.modules:
        if math.isfinite(module.size) and not math.isfinite(module.error):
            message = (
                f"{module.name} of {merged.name} holds NaN or infinity: the file is not what "
                "its recipe makes."
            )
            raise VerifyError(message)


def _same_modules(merged: Path, run: _Run) -> None:
    from lib_merge.engine.fillers import fillers

    opened = open_lora(merged, run.node.family)
    opened.close()
    known = {*run.node.targets, *(target.name for target in fillers(run.node))}
    foreign = sorted(set(opened.modules) - known)
    if foreign:
        message = (
            f"{merged.name} has {len(foreign)} modules that its recipe does not make, {foreign[0]} first."
        )
        raise VerifyError(message)
