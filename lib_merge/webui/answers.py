"""What answers hold that other rooms write as plain JSON, told once for OpenAPI.

The wire carries reports, recipes and facts of files as they are saved, so their types are not those of an
operation. `NAMED` says which field of which component each one is; `tests/test_rest.py` holds real answers
against them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from lib_merge.analysis.triggers import Word
from lib_merge.recipe import FORMAT
from lib_merge.ui.protocol import About


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRange:
    """Least, most and mean rank of the modules."""

    min: int
    max: int
    mean: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLoads:
    """How much of a file one host loads."""

    title: str
    loaded: Annotated[int, About("modules")]
    total: int
    share_lost: Annotated[float | None, About("of the change, 0 to 1; null where it was not measured")]
    lost: Annotated[dict[str, str], About("module -> why; the first few")]
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstModule:
    """The module that is furthest from what was asked."""

    name: str
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """A merge or a verification, measured from the saved file."""

    output: Annotated[str, About("the file's name")]
    method: str
    family: str
    modules: int
    rank: RankRange
    relative_error: Annotated[float, About("‖saved − asked‖ / ‖asked‖")]
    worst_module: WorstModule | None
    energy_kept: Annotated[float, About("share of the merge that its rank keeps, 0 to 1")]
    cast_error: float
    bytes: int
    precision: Literal["fp16", "bf16", "float"]
    tensor_hash: str
    seconds: Annotated[dict[str, float], About("by stage, and total")]
    peak_rss_mb: float
    warnings: list[str]
    copied: list[str]
    left_out: Annotated[dict[str, str], About("module -> why")]
    pruned: dict[str, Any]
    levels: list[dict[str, Any]]
    blocks: Annotated[dict[str, dict[str, float]], About("figures by block")]
    loads_in: Annotated[dict[str, HostLoads], About("by host")]
    proof: Annotated[str, About("asked against saved, in words")]
    choice: Annotated[str, About("what a rank leaves out, in words; empty where nothing is cut")]
    key: Annotated[str, About("as `loras` lists it; of a merge")] = ""
    alias: str = ""
    prompt: Annotated[str, About("the tag for a prompt; of a merge", example="<lora:both:1>")] = ""
    triggers: str = ""
    entry: Annotated[str, About("of the history; of a merge")] = ""
    noise: str = ""
    on_checkpoint: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisDone:
    """An analysis that is complete: `analysis/{job}` has its report."""

    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSource:
    """A source of a recipe: a file by name and hash, or a group with a recipe of its own."""

    ratio: float
    name: str = ""
    sha256: str = ""
    size: int = 0
    te_ratio: float | list[float] | None = None
    blocks: Any = None
    elements: list[list[Any]] | None = None
    role: str | None = None
    recipe: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRecipe:
    """A recipe as merged files carry it (.docs/recipe.md)."""

    format: Annotated[str, About("what the record is", example=FORMAT)]
    version: int
    sources: list[SavedSource]
    method: str
    knobs: dict[str, Any]
    rank: str
    conv_rank: int | None
    prune: float
    precision: str
    seed: int
    family: str | None
    names: str = ""
    trainable: bool = False
    prune_below: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecognisedMark:
    """What a LoRA is recognised as, and what says so."""

    sort: str
    what: str
    sure: bool
    evidence: list[str]
    holds: Annotated[bool, About("its ratio is kept when those of all are set")]
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What is in a LoRA file."""

    file: str
    family: str | None
    candidates: list[str]
    reason: Annotated[str, About("what tells the family")]
    style: Annotated[str, About("spelling of its keys")]
    bytes: int
    modules: int
    kinds: Annotated[dict[str, int], About("kind -> modules")]
    rank: RankRange
    alpha: float | str
    dtype: str
    blocks: list[str]
    norm: float
    broken: Annotated[list[str], About("modules with NaN or infinity")]
    block_energy: Annotated[dict[str, float], About("share of the whole by block")]
    encoder_energy: dict[str, dict[str, float]]
    loads_in: Annotated[dict[str, HostLoads], About("by host")]
    loads_in_words: str
    loads_in_why: list[str]
    marks: list[RecognisedMark]
    embeddings: list[str]
    left_out: Annotated[dict[str, int], About("why -> modules")]
    tags: list[str]
    notes: list[str]
    recipe: Annotated[SavedRecipe | None, About("of a merged file")]
    metadata_keys: int
    training: Annotated[list[list[str]], About("title and value of each note of its training")]
    made_of: str
    words: Annotated[list[Word], About("likely trigger words, the surest first")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """An analysis as far as it has grown; each stage adds to the one before (.docs/report.md)."""

    format: str
    version: int
    stage: Literal["files", "sources", "pairs", "recipe", "methods", "advice"]
    family: str
    training: Annotated[dict[str, Any], About("rows of training notes side by side, and warnings")]
    sources: list[dict[str, Any]]
    pairs: Annotated[list[dict[str, Any]], About("how each two sources relate")]
    recipe: Annotated[dict[str, Any] | None, About("the merge as it would be")]
    methods: Annotated[list[dict[str, Any]], About("methods on the same sources")]
    advice: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    symptoms: list[dict[str, Any]]
    notes: list[str]
    seconds: float


# component -> field -> what it holds
NAMED: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "JobReply": {"result": (MergeResult, AnalysisDone)},
    "AnalysisReply": {"result": (MergeResult, AnalysisDone), "report": (Analysis,)},
    "InspectReply": {"found": (FileFacts,)},
    "Entry": {"recipe": (SavedRecipe,)},
}
