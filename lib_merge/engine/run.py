"""One merge, from a recipe to a published, proven file."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from lib_merge import metadata
from lib_merge.adapters import LoraFile
from lib_merge.engine import embeddings
from lib_merge.engine.core_merge import Memo
from lib_merge.engine.encode import (
    DTYPES,
    Encoded,
    encode_factors,
    encode_matrix,
    encode_terms,
    encode_vectors,
    possible_keys,
)
from lib_merge.engine.evaluate import Evaluator, module_policy
from lib_merge.engine.fillers import fillers
from lib_merge.engine.job import Job, check_target, pick_device
from lib_merge.engine.plan import Node, Planner, Target, all_notes, stamped
from lib_merge.engine.prune import BYTES, PrunePlan, plan_ranks
from lib_merge.engine.remarks import remarks
from lib_merge.engine.report import Report, peak_rss_mb
from lib_merge.engine.survey import survey
from lib_merge.engine.threads import MAX_WORKERS, Clock, Result, exact_numerics, in_order
from lib_merge.engine.verify import check_proof, off_target, prove
from lib_merge.errors import MergeError, NumericsError, OutputError, VerifyError
from lib_merge.files.hashes import data_hash, legacy_hash
from lib_merge.files.header import header_bytes
from lib_merge.files.writer import StreamWriter, header_room
from lib_merge.linalg import Delta, Dense, LowRank, Spanned
from lib_merge.linalg.truncate import compress
from lib_merge.methods import Space
from lib_merge.ranks.policy import PolicyKind, RankPolicy
from lib_merge.recipe import Recipe

log = logging.getLogger("lib_merge")


def run(recipe: Recipe, target: Path, job: Job) -> Report:
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
    planner = Planner(job.open_file, drop_unsupported=job.drop_unsupported)
    try:
        node = planner.build(recipe)
        with exact_numerics(device):
            report = _Run(node, planner.files, target, job, device).execute()
    finally:
        for file in planner.files:
            file.close()
    report.seconds["total"] = time.perf_counter() - start
    report.peak_rss_mb = peak_rss_mb()
    return report


class _Run:
    """State of one merge while it runs."""

    def __init__(
        self, node: Node, files: Sequence[LoraFile], target: Path, job: Job, device: torch.device
    ) -> None:
        self.node, self.files, self.target, self.job, self.device = node, files, target, job, device
        self.clock = Clock()
        self.evaluator = Evaluator(device, self.clock, memo=Memo())
        self.dtype = DTYPES[node.recipe.precision]
        self.report = Report(str(target), node.method.name, node.family, precision=node.recipe.precision)
        self.prune = PrunePlan()
        self.cuts: dict[str, float] = {}
        self.anew: set[str] = set()
        self.spectra: dict[str, np.ndarray] = {}

    def execute(self) -> Report:
        """Survey, write, prove and publish; a second time where modules were off target."""
        self.survey()
        everything, room = self.layout()
        final = self._attempt(everything, room)
        if final is None:
            # factors of a bad gauge magnify the one rounding of a copy: those modules are factored anew
            # instead. Or a source changed meanwhile, and what was found in it holds no longer
            self.evaluator.forget()
            final = self._attempt(everything, room)
        if final is None:
            message = (
                f"{min(self.anew)} could not be saved as it was asked for in "
                f"{self.report.precision}; try float."
            )
            raise VerifyError(message)
        self._finish(final)
        return self.report

    def layout(self) -> tuple[list[Target], int]:
        """Return the modules in the order they are written, and the bytes kept free for the header."""
        everything = sorted([*self.node.targets.values(), *fillers(self.node)], key=lambda item: item.name)
        keys = [key for item in everything for key in possible_keys(item)]
        return everything, header_room(
            [*keys, *embeddings.possible_keys(self.files)], _metadata_room(self.files)
        )

    def _attempt(self, everything: Sequence[Target], room: int) -> Path | None:
        """Write, prove and publish; None when modules were off target that can still be factored anew."""
        with StreamWriter(self.target, room) as writer:
            self.report.copied = embeddings.copy(self.files, self.dtype, writer, self.report.warnings)
            self._write(writer, everything)
            self._seal(writer)
            if not self.job.proof:
                return writer.publish(overwrite=self.job.overwrite)
            # the disk takes its time while the proof reads from memory
            flush = threading.Thread(target=writer.sync, name="lora-merge-sync")
            flush.start()
            try:
                self.report.modules = prove(self, writer.temp, list(self.node.targets.values()))
            finally:
                flush.join()
            again = {module.name for module in off_target(self, self.report)} - self.anew
            if again:
                self.anew |= again
                return None
            check_proof(self, self.report)
            self.job.tell("save", 1, 1)
            return writer.publish(overwrite=self.job.overwrite)

    def survey(self) -> None:
        """Find what methods, pruning and a budget must know of the whole LoRA first."""

        def each(work: Callable[[Target], None], items: Sequence[Target]) -> None:
            for done, _ in enumerate(in_order(self.blaming(work), items, self.device, self.job.cancelled), 1):
                self.job.tell("survey", done, len(items))

        survey(self.node, self.evaluator, each)
        if self.node.recipe.prune > 0 or self.node.policy.kind is PolicyKind.BUDGET:
            self.prune = plan_ranks(self.node, self.evaluator, each, self._fixed_bytes())
            if self.prune.pruned:
                self.report.pruned = self.prune.summary()

    def _fixed_bytes(self) -> int:
        """Return the bytes of the file that are no factors of merged modules."""
        everything, room = self.layout()
        width = BYTES[self.node.recipe.precision]
        numbers = sum(math.prod(shape) for _, _, shape in embeddings.possible_keys(self.files))
        for item in everything:
            numbers += 1  # alpha
            if item.name in self.node.targets:
                numbers += sum(value.numel() for value in self.evaluator.vectors(self.node, item).values())
            else:
                numbers += item.out + item.columns
        return room + 16 + numbers * width  # the header's length and its padding

    def _write(self, writer: StreamWriter, items: Sequence[Target]) -> None:
        copying = self.node.method.space is Space.SCALAR and self.node.policy.exact
        encode = self.blaming(lambda item: (item, self._encoded(item)))
        finished = in_order(encode, items, self.device, self.job.cancelled, 1 if copying else MAX_WORKERS)
        for done, (item, encoded) in enumerate(finished, 1):
            if encoded.dropped:
                self.report.left_out[item.name] = encoded.dropped
            self.cuts[item.name] = encoded.cut
            with self.clock.time("write"):
                for entry in encoded.entries:
                    writer.add(*entry)
            self.job.tell("merge", done, len(items))
        if not writer.entries:
            message = "every module of the result is zero: nothing would be left to save."
            raise OutputError(message)

    def blaming(self, work: Callable[[Target], Result]) -> Callable[[Target], Result]:
        """Return `work` whose errors about numbers say which source they come from."""

        def blamed(item: Target) -> Result:
            try:
                return work(item)
            except NumericsError as error:
                raise self.blame(item, error) from error

        return blamed

    def _encoded(self, item: Target) -> Encoded:
        if (
            item.name not in self.node.targets
        ):  # a filler: the loader wants the module, the merge has nothing in it
            return encode_factors(
                item, compress(LowRank(item.out, item.columns), RankPolicy(), "cpu"), self.dtype
            )
        if not any(self.node.weights(item)):
            return Encoded(dropped="weight 0 in every source")
        if item.name in self.prune.dropped:
            return Encoded(dropped=self.prune.dropped[item.name], cut=self.prune.norms[item.name])
        encoded = Encoded()
        if item.columns:
            encoded = self._matrix(item, self.evaluator.asked(self.node, item))
        vectors = self.evaluator.vectors(self.node, item)
        if vectors:
            encode_vectors(encoded, item, vectors, self.dtype)
        return encoded

    def _matrix(self, item: Target, delta: Delta | Spanned) -> Encoded:
        policy = self.prune.policy(item, module_policy(self.node, item))
        if isinstance(delta, LowRank) and not delta.terms:
            return Encoded(dropped="weight 0 in every source that has it")
        if policy.exact and item.name not in self.anew:
            if isinstance(delta, Spanned):
                delta = delta.low_rank()
            if isinstance(delta, LowRank) and delta.rank <= min(delta.out, delta.columns):
                with self.clock.time("combine"):
                    return encode_terms(item, delta, self.dtype)
            if isinstance(delta, Dense):
                return encode_matrix(item, delta, self.dtype)
        with self.clock.time("compress"):
            done = compress(delta, replace_sum(policy, item), self.device)
            self.spectra[item.name] = done.singular
            return encode_factors(item, done, self.dtype)

    def blame(self, item: Target, error: NumericsError) -> MergeError:
        """Name the source whose tensors are broken, or say that the precision is too small."""
        for leaf in self.node.leaves():
            part = leaf.parts.get(item.name)
            if part is None:
                continue
            for key in part.module.roles.values():
                value = leaf.file.file.read(key)
                if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
                    message = f"{leaf.file.name} is broken: {key} holds NaN or infinity."
                    return NumericsError(message)
        message = (
            f"{item.name} grows beyond what {self.node.recipe.precision} can hold: lower the "
            "ratios or save as float."
        )
        return NumericsError(message)

    def _seal(self, writer: StreamWriter) -> None:
        """Write the header: metadata, then the hashes over the bytes as they lie there."""
        with self.clock.time("hash"):
            recipe = stamped(self.node)
            leaves = [(leaf.source, leaf.file.metadata) for leaf in self.node.leaves()]
            ranks = [
                info.shape[0] for key, info in writer.entries.items() if key.endswith(".lora_down.weight")
            ]
            table = metadata.build(recipe, self.node.family, self.target.stem, leaves, ranks)
            if self.job.proof:
                digest = data_hash(writer.temp, writer.data_start)
                table["sshs_model_hash"] = digest
                table["sshs_legacy_hash"] = legacy_hash(writer.temp, writer.entries, writer.data_start, table)
                self.report.tensor_hash = digest
            writer.finish(table)
            self.report.bytes = writer.size

    def _finish(self, final: Path) -> None:
        report = self.report
        if final != self.target:
            report.warnings.append(
                f"{self.target.name} is in use by another program, so the merge was saved as {final.name}"
            )
        report.output = str(final)
        report.seconds = {
            **dict.fromkeys(("read", "combine", "compress", "write", "hash", "verify"), 0.0),
            **self.clock.seconds,
        }
        report.warnings.extend(all_notes(self.node, self.files))
        if self.job.proof:
            report.warnings.extend(remarks(self.node, self.evaluator, report, self.spectra))
        for file in self.files:
            for name, why in file.left_out.items():
                report.left_out[f"{file.name}: {name}"] = why
        if self.job.side_car:
            recipe = stamped(self.node)
            words = metadata.trigger_words([(leaf.source, leaf.file.metadata) for leaf in self.node.leaves()])
            notes = f"{metadata.describe_recipe(recipe)}\nasked = saved to {report.relative_error:.2%}"
            try:
                note = metadata.write_side_car(final, recipe, self.node.family, words, notes)
            except OutputError as error:  # the merge itself is safe; a note beside it is not worth failing
                note = str(error)
            report.warnings.extend([note] if note else [])


def replace_sum(policy: RankPolicy, item: Target) -> RankPolicy:
    """Return the policy with "Σ of the sources' ranks" turned into that number."""
    return RankPolicy(PolicyKind.RANK, max(1, item.stacked)) if policy.kind is PolicyKind.SUM else policy


def _metadata_room(files: Sequence[LoraFile]) -> int:
    """Upper bound of the metadata's JSON: everything copied from the sources, plus our own, escaped."""
    copied = sum(len(header_bytes({}, file.metadata, 0)) for file in files)
    return 2 * copied + (64 << 10) + 4096 * len(files)
