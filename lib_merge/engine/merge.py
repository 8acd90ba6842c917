"""One merge, from a recipe to a published, proven file: survey, write, prove, publish.

The proof opens the file again and holds it against what was asked, module by module. A merge proves its file
while it is still temporary; `verify` does the same with a file saved long ago, from the recipe that it
carries.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from lib_merge import metadata
from lib_merge.adapters import open_lora
from lib_merge.adapters.module import swap_halves
from lib_merge.engine.cancelling import CANCELLED, LEFT_NOTHING, NOTHING
from lib_merge.engine.encode import (
    DTYPES,
    Encoded,
    copy_embeddings,
    encode_factors,
    encode_for_training,
    encode_matrix,
    encode_terms,
    encode_vectors,
)
from lib_merge.engine.evaluate import blame, over_modules
from lib_merge.engine.publish import Published, publish
from lib_merge.engine.report import MergeReport, ModuleReport, levels_of, peak_rss_mb, remarks
from lib_merge.engine.room import written
from lib_merge.engine.survey import Plan, room_kept, survey
from lib_merge.engine.threads import Job, check_target, exact_numerics, no_full_gc, pick_device
from lib_merge.engine.tree import Node, Target, Tree, open_tree
from lib_merge.errors import Cancelled, MergeError, OutputError, VerifyError
from lib_merge.families import family_of
from lib_merge.files.hashes import data_hash, legacy_hash
from lib_merge.files.names import MAX_NAME, SUFFIX
from lib_merge.files.reader import SafetensorsFile
from lib_merge.files.writer import StreamWriter
from lib_merge.linalg import Dense, LowRank, Spanned, Term, difference_norm, norm, tolerances
from lib_merge.linalg.truncate import compress
from lib_merge.loaders import Verdict, verdicts, written_in
from lib_merge.methods import Space
from lib_merge.ranks.policy import RankPolicy
from lib_merge.recipe import Recipe


@no_full_gc()
def run(recipe: Recipe, target: Path, job: Job) -> MergeReport:
    """Merge `recipe` into `target`.

    Args:
        recipe: with paths filled in.
        target: the output, .safetensors.
        job: device, overwrite, progress, cancel.
    Returns:
        What came out, measured from the saved file before it got its name.
    Raises:
        MergeError: one of its family; sources and an existing output are then untouched.
    """
    start = time.perf_counter()
    check_target(target, recipe, overwrite=job.overwrite)
    device = pick_device(job.device)
    with open_tree(recipe, job.open_file, drop_unsupported=job.drop_unsupported) as tree, _steady(tree):
        report = MergeReport.of(tree.root, target)
        with exact_numerics(device):
            plan = survey(tree, device, job)
            final = _attempt(tree, plan, report, target, job)
            if final is None:
                # factors of a bad gauge magnify the one rounding of a copy: those modules are factored anew
                # instead
                plan.evaluator.forget()
                final = _attempt(tree, plan, report, target, job)
            if final is None:
                message = (
                    f"{min(plan.anew)} could not be saved as it was asked for in "
                    f"{report.precision}; try float."
                )
                raise VerifyError(message)
            _finish(tree, plan, report, final, job)
    report.seconds["total"] = time.perf_counter() - start
    report.peak_rss_mb = peak_rss_mb()
    return report


def _attempt(tree: Tree, plan: Plan, report: MergeReport, target: Path, job: Job) -> Published | None:
    """Write, prove and publish; None when modules were off target that can still be factored anew."""
    with StreamWriter(target, plan.size.room) as writer:
        _write(tree, plan, report, writer, job)
        _seal(tree, plan, report, writer, job)
        if job.proof:
            # the disk takes its time while the proof reads from memory
            with _beside(writer.sync):
                report.modules, report.loads_in = prove(writer.temp, tree, plan, job)
            tree.check_unchanged()
            again = {module.name for module in off_target(report.modules, tree.root)} - plan.anew
            if again:
                plan.anew |= again
                return None
            check_proof(report.modules, tree.root)
            job.tell("save", 1, 1)
        tree.check_unchanged()  # what was hashed is what was read
        return publish(writer, tree, report, job)


@contextlib.contextmanager
def _steady(tree: Tree) -> Iterator[None]:
    """Say of what fails because a source was written to meanwhile that this is why."""
    try:
        yield
    except Cancelled:
        raise
    except MergeError:
        tree.check_unchanged()
        raise


@contextlib.contextmanager
def _beside(work: Callable[[], None]) -> Iterator[None]:
    """Do `work` in a thread of its own meanwhile; what it cannot do is raised at the end."""
    failed: list[MergeError] = []

    def run() -> None:
        try:
            work()
        except MergeError as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="lora-merge-sync")
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failed:
        raise failed[0]


def _write(tree: Tree, plan: Plan, report: MergeReport, writer: StreamWriter, job: Job) -> None:
    """Stream every module of the result into the file; note what was left out and what was cut."""
    node, evaluator = tree.root, plan.evaluator
    report.copied = copy_embeddings(tree.files, DTYPES[report.precision], writer, report.warnings)
    copying = node.method.space is Space.SCALAR and node.policy.exact
    finished = over_modules(
        lambda item: (item.name, _encoded(tree, plan, item)),
        written(node),
        node,
        evaluator.device,
        job,
        stage="merge",
        copying=copying,
    )
    saved = bool(report.copied)
    for name, encoded in finished:
        saved = saved or (bool(encoded.entries) and not encoded.filler)
        if encoded.dropped:
            selects = encoded.dropped == CANCELLED and node.method.space is Space.DENSE
            report.left_out[name] = LEFT_NOTHING if selects else encoded.dropped
        plan.cuts[name] = encoded.cut
        with evaluator.clock.time("write"):
            for entry in encoded.entries:
                writer.add(tree.naming.key(name, entry[0][len(name) + 1 :]), *entry[1:])
    if not saved:
        raise OutputError(NOTHING)


def _encoded(tree: Tree, plan: Plan, item: Target) -> Encoded:
    node, dtype = tree.root, DTYPES[tree.root.recipe.precision]
    if item.name not in node.targets:  # the loader wants the module, the merge has nothing in it
        return _filler(item, dtype, alpha=tree.naming.alpha)
    if not any(node.weights(item)):
        return Encoded(dropped="weight 0 in every source")
    if item.name in plan.kept.dropped:
        return Encoded(dropped=plan.kept.dropped[item.name], cut=plan.kept.norms[item.name])
    encoded = _matrix(tree, plan, item) if item.columns else Encoded()
    alone = encoded.dropped == CANCELLED or not item.columns
    vectors = (plan.evaluator.remaining_vectors if alone else plan.evaluator.vectors)(node, item)
    if tree.naming.swaps(item.name):
        vectors = {role: torch.roll(value, value.numel() // 2) for role, value in vectors.items()}
    if vectors:
        encode_vectors(encoded, item, vectors, dtype)
    if encoded.entries:
        return encoded
    encoded.dropped = encoded.dropped or CANCELLED
    wanted = encoded.dropped == CANCELLED and family_of(node.family).set_of(item.name) is not None
    return (
        replace(_filler(item, dtype, alpha=tree.naming.alpha), dropped=CANCELLED)
        if wanted and item.columns
        else encoded
    )


def _filler(item: Target, dtype: torch.dtype, *, alpha: bool) -> Encoded:
    zeros = compress(LowRank(item.out, item.columns), RankPolicy(), "cpu")
    return replace(encode_factors(item, zeros, dtype, alpha=alpha), filler=True)


def _matrix(tree: Tree, plan: Plan, item: Target) -> Encoded:
    evaluator, dtype = plan.evaluator, DTYPES[tree.root.recipe.precision]
    delta = evaluator.asked(tree.root, item)
    if tree.naming.swaps(item.name):
        delta = swap_halves(delta.low_rank() if isinstance(delta, Spanned) else delta)
    policy = plan.kept.policy_at(tree.root, item)
    if isinstance(delta, LowRank) and not delta.terms:
        inside = item.name in evaluator.cancelled
        return Encoded(dropped=CANCELLED if inside else "weight 0 in every source that has it")
    if evaluator.cancels(tree.root, item, delta):
        return Encoded(dropped=CANCELLED)
    if item.one_axis:  # no loader takes factors of a weight that is no matrix
        whole = delta.low_rank() if isinstance(delta, Spanned) else delta
        return encode_matrix(item, Dense(1.0, whole.dense()), dtype)
    if policy.exact and item.name not in plan.anew:
        if isinstance(delta, Spanned):
            delta = delta.low_rank()
        if isinstance(delta, LowRank) and delta.rank <= min(delta.out, delta.columns):
            if tree.root.recipe.trainable:
                return encode_for_training(item, delta, _alpha_of(tree.root, item, delta.rank), dtype)
            with evaluator.clock.time("combine"):
                return encode_terms(item, delta, dtype, alpha=tree.naming.alpha)
        if isinstance(delta, Dense):
            return encode_matrix(item, delta, dtype)
    with evaluator.clock.time("compress"):
        done = compress(delta, policy, evaluator.device)
        plan.spectra[item.name] = done.singular
        if tree.root.recipe.trainable:
            made = LowRank(item.out, item.columns, (Term(1.0, done.up, done.down),))
            again = encode_for_training(item, made, _alpha_of(tree.root, item, done.rank), dtype)
            return replace(again, cut=done.cut, size=done.size)
        return encode_factors(item, done, dtype, alpha=tree.naming.alpha)


def _alpha_of(node: Node, item: Target, rank: int) -> float:
    """Return the alpha that all sources of a module have, or its rank where they differ or have none."""
    alphas = set()
    for leaf in node.leaves():
        part = leaf.parts.get(item.name)
        if part is not None and part.columns:
            key = part.module.roles.get("alpha")
            alphas.add(float(leaf.file.file.read(key)) if key is not None else math.nan)
    alpha = alphas.pop() if len(alphas) == 1 else math.nan
    return alpha if math.isfinite(alpha) and alpha > 0 else float(rank)


def _seal(tree: Tree, plan: Plan, report: MergeReport, writer: StreamWriter, job: Job) -> None:
    """Write the header: metadata, then the hashes over the bytes as they lie there."""
    with plan.evaluator.clock.time("hash"):
        node = tree.root
        leaves = [(leaf.source, leaf.file.metadata) for leaf in node.leaves()]
        ranks = [info.shape[0] for key, info in writer.entries.items() if key.endswith(".lora_down.weight")]
        table = metadata.build(node.stamped(), node.family, writer.target.stem, leaves, ranks)
        room = room_kept(tree, plan, cancelled=CANCELLED in report.left_out.values())
        writer.fit(metadata.unsealed(table) if job.proof else table, room)
        if job.proof:
            digest = data_hash(writer.temp, writer.data_start)
            table["sshs_model_hash"] = digest
            table["sshs_legacy_hash"] = legacy_hash(writer.temp, writer.entries, writer.data_start, table)
            report.tensor_hash = digest
        writer.finish(table)
        report.bytes = writer.size


def _finish(tree: Tree, plan: Plan, report: MergeReport, published: Published, job: Job) -> None:
    """Fill in the rest of the report."""
    node = tree.root
    target, final = Path(report.output), published.path
    if final != target:
        report.warnings.append(
            f"{target.name} is in use by another program, so the merge was saved as {final.name}"
        )
    report.output = str(final)
    report.seconds = {
        **dict.fromkeys(("read", "combine", "compress", "write", "hash", "verify"), 0.0),
        **plan.evaluator.clock.seconds,
    }
    report.pruned = plan.kept.summary() if plan.kept.pruned else {}
    report.levels = list(levels_of(node, plan.evaluator))
    report.warnings.extend(tree.notes)
    many = metadata.too_many_tags([(leaf.source, leaf.file.metadata) for leaf in node.leaves()])
    report.warnings.extend([many] if many else [])
    if job.proof:
        report.warnings.extend(remarks(node, plan.evaluator, report, plan.spectra))
    for file in tree.files:
        for name, why in file.left_out.items():
            report.left_out[f"{file.name}: {name}"] = why
    report.kept = published.notes
    report.warnings.extend(published.notes)


def save_groups(recipe: Recipe, folder: Path, job: Job) -> list[str]:
    """Merge every group into `folder`, innermost first, so that a step can be judged and rolled back to.

    Returns:
        A sentence for each.
    Raises:
        OutputError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"the folder {folder.name} for the levels cannot be made: {error.strerror or error}."
        raise OutputError(message) from error
    return list(_groups(recipe, folder, job, ""))


def _groups(recipe: Recipe, folder: Path, job: Job, prefix: str) -> Iterator[str]:
    for number, source in enumerate(recipe.sources, 1):
        if source.recipe is None:
            continue
        name = _level(prefix, number, source.name)
        yield from _groups(source.recipe, folder, job, f"{name}-")
        inner = replace(
            source.recipe,
            family=source.recipe.family or recipe.family,
            precision=recipe.precision,
            names=recipe.names,
        )
        report = run(inner, folder / f"{name}.safetensors", replace(job, overwrite=True))
        yield f"level {number} was saved as {Path(report.output).name}"
        yield from (f"level {number}: {note}" for note in report.kept)


def _level(prefix: str, number: int, called: str) -> str:
    """Return the name of a group's file: where it stands, and what of its own name a file can have."""
    name = f"{prefix}level-{number}"
    if called:
        name += "-" + re.sub(r"[^\w.-]+", "_", Path(called).stem)[:60]
    # of levels below levels the deepest are what tells them apart
    raw = name.encode("utf-8")[-(MAX_NAME - len(SUFFIX) - 1) :]
    return raw.decode("utf-8", "ignore").strip(".")


# ---------------------------------------------------------------- the proof


def rounding(precision: str) -> float:
    """Return the relative Frobenius error that one rounding of both factors can add."""
    allowed = {"fp16": tolerances.PROOF_FP16, "bf16": tolerances.PROOF_BF16, "float": tolerances.PROOF_FLOAT}
    return allowed[precision]


class Proof(NamedTuple):
    """What the saved file is: each module against what was asked, and what each host makes of its names."""

    modules: list[ModuleReport]
    loads_in: list[Verdict]


def prove(saved: Path, tree: Tree, plan: Plan, job: Job) -> Proof:
    """Return ‖saved − asked‖ and ‖asked‖ of every module, from freshly read sources, and who loads the file.

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
            there = part is not None and part.columns > 0
            delta = (
                part.load(merged.file) if part is not None and there else LowRank(target.out, target.columns)
            )
            rank = 0 if isinstance(delta, Dense) else delta.rank
            if evaluator.cancels(node, target, asked):
                error, size = norm(delta), 0.0
            elif there:
                error, size = difference_norm(delta, asked)
            else:
                error = size = norm(asked) if target.columns else 0.0
            return ModuleReport(
                name=target.name, block=target.block, rank=rank, error=error, cut=cut, size=size
            )

        modules = list(over_modules(measure, targets, node, evaluator.device, job, stage="verify"))
        sizes = {module.name: module.size for module in modules}
        return Proof(modules, verdicts(written_in(merged), sizes))


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
        report.modules, report.loads_in = prove(merged, tree, plan, job)
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
