"""What the command line shows: progress on stderr, reports and lists as plain text on stdout."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from lib_merge.analysis import AnalysisReport
from lib_merge.blocks import preset_hint
from lib_merge.engine.report import MergeReport, part_words
from lib_merge.errors import OutputError
from lib_merge.files.store import write_text
from lib_merge.loaders import sentence, why
from lib_merge.methods import METHODS
from lib_merge.ranks.policy import parse_policy

QUIET = 1.0  # nothing is shown for work that takes less than this many seconds
EVERY = 2.0


def show(text: str) -> None:
    """Write to stdout."""
    # names come from files: what the console cannot show is escaped, never an error
    stream = sys.stdout
    if stream is None:  # it was closed before the start: nobody reads
        return
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def write_page(path: Path, text: str) -> None:
    """Write a page; only an earlier page may lie there.

    Raises:
        OutputError: another file lies there, or it cannot be written.
    """
    if path.exists() and path.suffix.lower() not in (".html", ".htm"):
        message = f"{path.name} exists already and is no page: choose a name that ends in .html."
        raise OutputError(message)
    write_text(path, text)


class ProgressLine:
    """A progress callback for the engine; shows nothing for the first second."""

    def __init__(self) -> None:
        """Note the start."""
        self._start = self._said = time.monotonic()
        self._bar: Any = None
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take the engine's progress."""
        now = time.monotonic()
        if now - self._start < QUIET:
            return
        if stage != self._stage:
            self._close()
            self._stage = stage
            self._bar = self._new_bar(stage, total)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif now - self._said >= EVERY:
            self._said = now
            sys.stderr.write(f"{stage}: {done} of {total} modules\n")

    @staticmethod
    def _new_bar(stage: str, total: int) -> Any:  # noqa: ANN401
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            return tqdm(total=total, desc=stage, unit="module", leave=False, file=sys.stderr, mininterval=0.2)
        return None

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> ProgressLine:
        """Return the callback."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        self._close()


# ---------------------------------------------------------------- merges, files, methods


def report_text(report: MergeReport) -> str:
    """Return a finished merge in a few lines."""
    ranks = report.ranks()
    worst = report.worst()
    lines = [
        f"{Path(report.output).name}: {report.family}, {_title(report.method)}, "
        f"{len(report.modules)} modules, rank {ranks['min']}-{ranks['max']}, {report.bytes / 1e6:.1f} MB",
        *report.words(),
    ]
    if worst and len(lines) == 2:  # of a merge that is cut the worst module tells the cut, not the proof
        lines[1] += f" (worst {worst.relative:.3%}, {worst.name})"
    if report.pruned:
        saved, error = report.pruned["bytes_saved"], report.pruned["relative_error"]
        lines.append(f"pruning saved {saved / 1e6:.2f} MB and left out {error**2:.3%} of the merge")
    for level in report.levels:
        low, high = level.rank
        lines.append(
            f"{level.name} enters at rank {low}-{high}, which keeps {level.energy_kept:.2%} of its energy"
        )
    if report.loads_in:
        lines.append(f"loads in {sentence(report.loads_in)}")
        lines.extend(f"  {line}" for line in why(report.loads_in))
    lines.extend(f"note: {warning}" for warning in report.warnings)
    if report.left_out:
        reasons: dict[str, int] = {}
        for reason in report.left_out.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        lines.append("left out: " + ", ".join(f"{count} × {reason}" for reason, count in reasons.items()))
    total = report.seconds.get("total", 0.0)
    lines.append(f"{total:.2f} s, at most {report.peak_rss_mb:.0f} MB of memory")
    return "\n".join(lines)


def _title(method: str) -> str:
    """Return what people call a method."""
    return METHODS[method].title if method in METHODS else method


def inspect_text(item: dict[str, Any]) -> str:
    """Return what `inspect` found in a few lines."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in item["kinds"].items())
    rank = item["rank"]
    lines = [
        f"{item['file']}: {item['family'] or ' or '.join(item['candidates'])} ({item['reason']})",
        f"  {item['style']} keys, {kinds}; rank {rank['min']}-{rank['max']}, alpha {item['alpha']}, "
        f"{item['dtype']}, "
        f"{item['bytes'] / 1e6:.1f} MB, norm {item['norm']:.4g}",
        f"  blocks: {' '.join(item['blocks'])}",
    ]
    lines.extend(f"  loads in {item['loads_in_words']}" for _ in range(bool(item["loads_in"])))
    lines.extend(f"    {line}" for line in item["loads_in_why"])
    lines.extend(f"  {mark['said']}" for mark in item["marks"])
    if item["tags"]:
        lines.append(f"  tags: {', '.join(item['tags'])}")
    if item["broken"]:
        lines.append(
            f"  broken: {len(item['broken'])} modules hold NaN or infinity, {item['broken'][0]} first"
        )
    if item["left_out"]:
        lines.append(f"  cannot be merged: {item['left_out']}")
    lines.extend(f"  note: {note}" for note in item["notes"])
    if item["recipe"]:
        lines.append("  merged by this program; `run` and `verify` take it")
    return "\n".join(lines)


def method_rows() -> list[dict[str, Any]]:
    """Return the registry as JSON-ready rows."""
    return [
        {
            "name": method.name,
            "title": method.title,
            "sentence": method.sentence,
            "paper": method.paper,
            "space": method.space,
            "sources": list(method.sources),
            "roles": list(method.roles),
            "order_matters": not method.symmetric,
            "knobs": [
                {
                    "name": knob.name,
                    "kind": knob.kind,
                    "default": knob.default,
                    "minimum": knob.minimum,
                    "maximum": knob.maximum,
                    "step": knob.step,
                    "choices": list(knob.choices),
                    "scope": knob.scope,
                    "help": knob.help,
                }
                for knob in method.knobs
            ],
        }
        for method in METHODS.values()
    ]


def methods_text() -> str:
    """Return the methods with their sentence and knobs."""
    lines = []
    for method in METHODS.values():
        lines.append(f"{method.name}  ({method.space})  {method.sentence}")
        lines.extend(f"    {knob.name}={knob.default}  {knob.help}" for knob in method.knobs)
    return "\n".join(lines)


def presets_text(presets: Mapping[str, Mapping[str, float]]) -> str:
    """Return block presets, one a line: the name, what it is for, the blocks that do not weigh 1."""
    lines = []
    for name, weights in presets.items():
        lines.append(f"{name}  {preset_hint(name)}".rstrip())
        lines.append(f"    {_ranges(weights) or 'every block at 1'}")
    return "\n".join(lines)


def _ranges(weights: Mapping[str, float]) -> str:
    """Return block weights other than 1 as they can be typed, neighbours of one weight as a range."""
    parts = []
    for weight, same in itertools.groupby(weights, key=weights.__getitem__):
        blocks = list(same)
        if weight != 1:
            parts.append(f"{blocks[0]}{f'-{blocks[-1]}' if len(blocks) > 1 else ''}={weight:g}")
    return ",".join(parts)


def methods_markdown() -> str:
    """Return the table of methods in `.docs/methods.md`."""
    rows = ["| method | works on | what it does | knobs (default) |", "|---|---|---|---|"]
    for method in METHODS.values():
        knobs = ", ".join(f"`{knob.name}` ({_plain(knob.default)})" for knob in method.knobs) or "–"
        rows.append(f"| [`{method.name}`]({method.paper}) | {method.space} | {method.sentence} | {knobs} |")
    return "\n".join(rows)


def _plain(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


# ---------------------------------------------------------------- analyses


def analysis_text(report: AnalysisReport) -> str:
    """Return a report in a few plain lines."""
    parts: tuple[Callable[[AnalysisReport], Iterator[str]], ...] = (_sources, _pairs, _merge, _advice)
    return "\n".join(_printable(line) for part in parts for line in part(report))


def _printable(line: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def _sources(report: AnalysisReport) -> Iterator[str]:
    for source in report.sources:
        part = source.whole
        low, high = source.rank
        ranks = f"rank {low}" if low == high else f"rank {low} to {high}"
        yield (
            f"{source.name}: {report.family}, {source.modules} modules, {ranks}, norm "
            f"{part.norm:.4g}, effective rank "
            f"{part.effective_rank:.1f}, 99 % of the energy in rank {part.ranks.get(0.99, 0)}, text "
            f"encoders {source.encoder:.0%}"
        )
        yield from (f"  {mark.said}" for mark in source.marks)
        if source.zero:
            yield f"  {len(source.zero)} tensors are zero"
        if source.broken:
            yield f"  {len(source.broken)} tensors hold NaN or infinity, first {source.broken[0]}"
    yield from (f"note: {note}" for note in (*report.notes, *report.training.warnings))


def _pairs(report: AnalysisReport) -> Iterator[str]:
    for pair in report.pairs:
        part = pair.whole
        names = " and ".join(report.sources[index].label for index in (pair.first, pair.second))
        line = f"{names}: {pair.relation} ({pair.reason})"
        if part.modules:
            line += (
                f"; overlap {part.overlap_out / part.chance_out:.1f} × chance in what they write, "
                f"{part.overlap_in / part.chance_in:.1f} × in what they read; signs disagree in "
                f"{part.conflict:.1%} "
                f"± {part.error:.1%}, expected {part.expected:.1%}"
            )
        yield line


def _merge(report: AnalysisReport) -> Iterator[str]:
    recipe = report.recipe
    if recipe is None or len(report.sources) < 2:
        return
    whole = recipe.whole
    each = ", ".join(
        f"{label}@{ratio:g} {share:.0%}"
        for label, ratio, share in zip(recipe.labels, recipe.ratios, whole.shares)
    )
    seen = "" if recipe.direct else f" (from {recipe.seen[0]} of {recipe.seen[1]} modules)"
    yield f"{recipe.title}{seen}: norm {whole.norm:.4g}, shares {each}"
    kept = f"{part_words(1 - recipe.error**2)} of the merge is kept" if recipe.error else "nothing is cut"
    yield f"  {recipe.bytes / 1e6:.1f} MB: {kept} ({parse_policy(recipe.policy).words})"
    for pruned in recipe.pruning:
        yield f"  {pruned.said}"
    crosstalk = ", ".join(f"{value:.0%}" for value in whole.crosstalk)
    yield (
        f"  {whole.cancel:.2f} × as strong as unrelated LoRAs would be together (below 1 they cancel); the "
        f"others add {crosstalk} to the work of each on its own inputs; the strongest direction grows to "
        f"{whole.growth:.2f} ×"
    )


def _advice(report: AnalysisReport) -> Iterator[str]:
    for item in report.advice:
        yield f"advice: {item.title}: {item.reason}"
    if not report.advice:
        yield "advice: none; the numbers speak for no change"
