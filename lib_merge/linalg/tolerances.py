"""The one table of tolerances: what counts as rounding, as parallel, as empty, as worth a word.

Each row is a number of this module, read as `tolerances.NAME` wherever it is used: it is changed in one place
and a test can move it. `TABLE` holds the same rows with their reasons; `tests/test_tolerances.py` has a test
for each that fails when it moves by a factor that matters. Sizes that only decide speed (bands, batches,
caches) are not tolerances and stay beside their use.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tolerance:
    """One row.

    value   the number
    unit    of what it is a share or a multiple
    why     why it is there and of this size
    breaks  what goes wrong when it moves
    """

    value: float
    unit: str
    why: str
    breaks: str


TABLE: dict[str, Tolerance] = {}


def _row(name: str, value: float, unit: str, *, why: str, breaks: str) -> float:
    TABLE[name] = Tolerance(value, unit, why, breaks)
    return value


# ---------------------------------------------------------------- rounding of products

FLOAT32_NOISE = _row(
    "FLOAT32_NOISE",
    1e-7,
    "of ‖G_B‖‖G_A‖",
    why="rounding of an inner product taken from float32 Grams, relative to the factors' own size",
    breaks="smaller: distances that are rounding are believed; larger: float64 where float32 would do",
)
FLOAT64_NOISE = _row(
    "FLOAT64_NOISE",
    1e-15,
    "of ‖G_B‖‖G_A‖",
    why="the same for float64 Grams",
    breaks="smaller: a distance that is rounding is reported; larger: QR for nothing",
)
DROWNED = _row(
    "DROWNED",
    2000.0,
    "× the rounding",
    why="a squared distance that is this many times its rounding has three digits",
    breaks="smaller: distances without a digit are reported; larger: everything is done twice",
)
FACTOR_NOISE = _row(
    "FACTOR_NOISE",
    1e3,
    "× the rounding",
    why="‖ΔW‖² must stand this far above the rounding of its own float32 Grams before factors are subtracted",
    breaks="smaller: a badly gauged file's own norm is rounding, and its error is measured against that",
)
SAME_FACTORS = _row(
    "SAME_FACTORS",
    0.03,
    "of ‖factors‖",
    why="factors further apart than this are not the same ones rounded, and their difference is not small",
    breaks="larger: unrelated factors of equal rank are subtracted, whose float32 Grams lose the distance",
)
NEAR_DENSE = _row(
    "NEAR_DENSE",
    1e-5,
    "of ‖ΔW‖",
    why="dense sides nearer than this are compared again in float64; float32 sums keep about 1e-6",
    breaks="smaller: the rounding of float32 is reported as an error of the file",
)

# ---------------------------------------------------------------- singular values from Grams

SVD_TINY = _row(
    "SVD_TINY",
    1e-6,
    "of S₀",
    why="singular values of a core below this are no directions; cores come from float64 Grams (1e-8)",
    breaks="smaller: rounding is a direction that isotropic methods raise; larger: faint ones are lost",
)
SVD_NARROW = _row(
    "SVD_NARROW",
    1e-4,
    "of S₀",
    why="down to here the square of a singular value keeps eight of float64's digits; below, LAPACK's SVD",
    breaks="smaller: singular vectors of faint directions are not orthonormal",
)
PSEUDO = _row(
    "PSEUDO",
    1e-10,
    "of the largest eigenvalue",
    why="eigenvalues of a Gram below this are its rounding, and are not inverted",
    breaks="smaller: rounding is inverted and explodes; larger: faint inputs are lost",
)
GRAM_FLOOR = _row(
    "GRAM_FLOOR",
    3e-3,
    "of √(‖G_B‖‖G_A‖)",
    why="the smallest kept singular value must stand above the rounding of float32 Grams (√1e-7)",
    breaks="smaller: a truncation is worse than the best one by more than a percent",
)
NUMERICAL_RANK = _row(
    "NUMERICAL_RANK",
    1e-12,
    "of S₀",
    why="singular values below this are rounding of float64 and never kept, whatever the rule asks for",
    breaks="smaller: rounding is saved as ranks; larger: true directions are lost",
)
QR_NOISE = _row(
    "QR_NOISE",
    1e-13,
    "of ‖R_B‖‖R_A‖, and of S₀",
    why="what terms that cancel leave behind on the QR route",
    breaks="smaller: a file minus itself is saved as noise; larger: a faint difference of two files is lost",
)
DENSE_NOISE = _row(
    "DENSE_NOISE",
    1e-8,
    "of S₀",
    why="a float64 Gram of the matrix itself squares the ratio: below this it holds noise",
    breaks="smaller: noise is saved as ranks; larger: true directions of a whole matrix are lost",
)
SKETCH_NOISE = _row(
    "SKETCH_NOISE",
    1e-7,
    "of S₀",
    why="a float32 sketch holds nothing below this",
    breaks="smaller: a matrix of low rank is saved at the rank asked for, with directions of noise",
)
CLEAR_REMAINDER = _row(
    "CLEAR_REMAINDER",
    0.01,
    "of ‖ΔW‖²",
    why="a smaller remainder has no digits as a difference of squares in float32, and is measured",
    breaks="smaller: the reported cut of a nearly lossless sketch has no digits",
)

# ---------------------------------------------------------------- the common space of core methods

BASIS_NOISE = _row(
    "BASIS_NOISE",
    1e-6,
    "of the largest singular value",
    why="directions of the stacked sources below this are rounding, not signal",
    breaks="smaller: a file beside its own copy spans noise; larger: a faint source has no room in the space",
)
SKEW = _row(
    "SKEW",
    1e4,
    "‖L⁻¹‖ of unit columns",
    why="beyond it a basis made with a Cholesky factor is not orthonormal to 1e-8",
    breaks="larger: near-copies give bases that are skew, and every norm in the core is wrong",
)
CORE_ILL = _row(
    "CORE_ILL",
    1e8,
    "‖G_B‖‖G_A‖ / ‖τ‖²",
    why="float64 Grams keep four digits of a source whose factors are so much larger; beyond, its SVD",
    breaks="larger: a source of a bad gauge is merged as noise",
)
CORE_STEEP = _row(
    "CORE_STEEP",
    1e3,
    "‖G_B‖‖G_A‖ / ‖τ‖²",
    why="beyond it float32 products of a source show the size of its factors",
    breaks="larger: rows of a badly gauged source have three digits",
)
CORE_FAINT = _row(
    "CORE_FAINT",
    1e-7,
    "of S₀",
    why="directions of a merged core below this are rounding of the Grams",
    breaks="smaller: a merge of copies is saved with ranks of noise; larger: faint directions are lost",
)
ROWS_PLAIN = _row(
    "ROWS_PLAIN",
    1e-4,
    "of the largest square",
    why="squares of rows' singular values above this keep three digits in a float32 Gram",
    breaks="smaller: the faint directions of merged rows are mixed up",
)
SPANNED_STEEP = _row(
    "SPANNED_STEEP",
    30.0,
    "× the result",
    why="float32 products whose summands are this much larger than what they give lose more than 3e-6",
    breaks="larger: saved factors of near-copies or of a bad gauge are off",
)

# ---------------------------------------------------------------- figures of the analysis

STACK_ILL = _row(
    "STACK_ILL",
    100.0,
    "‖G_U‖‖G_D‖ / ‖ΔW‖²",
    why="beyond it float32 products lose digits of ΔW that the panel shows",
    breaks="larger: norms and spectra of a badly gauged source are wrong in the digits shown",
)
CLOSE = _row(
    "CLOSE",
    0.99,
    "|cosine|",
    why="the difference of two sources nearer than this needs float64",
    breaks="larger: how far two near-copies are apart is rounding",
)
WEAK = _row(
    "WEAK",
    0.02,
    "of S₀",
    why="Grams square the ratio: a direction that counts and is weaker than this needs float64",
    breaks="smaller: the weak end of a spectrum, and the overlaps taken from it, are float32's rounding",
)
DIRECTION = _row(
    "DIRECTION",
    1e-3,
    "of S₀",
    why="a direction counts in overlaps and crosstalk while its singular value is above this",
    breaks="larger: weak directions are left out of overlaps; smaller: rounding takes part in them",
)
ROUNDING = _row(
    "ROUNDING",
    1e-14,
    "of the largest eigenvalue",
    why="what is below this in a float64 Gram is rounding and counts as none",
    breaks="smaller: a merge's foreseen rank counts noise; larger: its faint end is not foreseen",
)
SHARE_SLACK = _row(
    "SHARE_SLACK",
    1e-12,
    "of the energy",
    why="a tail that equals the allowed one but for the order of its sum is allowed",
    breaks="0: energy:1 or error shares that a rank meets exactly ask for one rank more",
)
COUNT_SLACK = _row(
    "COUNT_SLACK",
    1e-9,
    "entries",
    why="0.3 · 10 is 2.9999999999999996: a share of entries that is a whole number stays one",
    breaks="0: one entry less is trimmed than the share says; 1: one more",
)

# ---------------------------------------------------------------- methods

PARALLEL = _row(
    "PARALLEL",
    0.9995,
    "|cosine|",
    why="past it the arc is its chord to 1.3e-4, and sin Ω, by which is divided, soon has no digits",
    breaks="smaller: SLERP and Karcher leave the arc where it is well defined, 2.5 % off at 0.9",
)
KARCHER_STEP = _row(
    "KARCHER_STEP",
    1e-9,
    "radians",
    why="the mean is found when the step towards it is below this",
    breaks="larger: the mean of three and more stops half way",
)
ZERO_ANGLE = _row(
    "ZERO_ANGLE",
    1e-12,
    "of the sphere's radius",
    why="directions that cancel to this have no mean, and points this near have no direction between them",
    breaks="smaller: a mean of opposites is rounding blown up to full strength",
)
CANCELS = _row(
    "CANCELS",
    1e-7,
    "of √Σ‖τᵢ‖²",
    why="float64 Grams hold a sum that cancels to this as rounding: no direction to bring to full strength",
    breaks="smaller: rounding is scaled up to full strength; larger: near-opposites are saved as nothing",
)
CANCELS_WHOLE = _row(
    "CANCELS_WHOLE",
    5e-7,
    "of √Σ‖wᵢΔWᵢ‖²",
    why="eight roundings of float32, in which whole matrices and biases are added: a sum of ten stays below",
    breaks="smaller: rounding is saved as a difference; larger: a small difference is saved as nothing",
)
COLUMN_FLOOR = _row(
    "COLUMN_FLOOR",
    1e-12,
    "of the largest column's products",
    why="a column that is zero but for rounding has no cosine",
    breaks="smaller: empty inputs are weighed by rounding",
)

# ---------------------------------------------------------------- the proof

PROOF_FP16 = _row(
    "PROOF_FP16",
    1e-3,
    "of ‖ΔW‖",
    why="rounding factors to fp16 costs 2e-4 to 3e-4 of a module; four times that is a fault",
    breaks="smaller: sound files are refused; larger: a wrong byte passes",
)
PROOF_BF16 = _row(
    "PROOF_BF16",
    8e-3,
    "of ‖ΔW‖",
    why="the same for bf16, with three bits less",
    breaks="smaller: sound files are refused; larger: a wrong byte passes",
)
PROOF_FLOAT = _row(
    "PROOF_FLOAT",
    5e-5,
    "of ‖ΔW‖",
    why="the same for float32, where only products round; factors of cond 1000 magnify that to 2e-5",
    breaks="larger: a wrong byte passes",
)
CUT_SLACK = _row(
    "CUT_SLACK",
    1.002,
    "× the cut",
    why="a cut known from singular values and the same cut measured differ by 0.09 % at 3e-4 of ‖ΔW‖",
    breaks="smaller: cut files are refused; larger: an error hides behind a cut",
)
PROOF_FLOOR = _row(
    "PROOF_FLOOR",
    1e-7,
    "of the largest module",
    why="a module of next to no weight may lose all of it to rounding without anyone ever seeing it",
    breaks="0: files with a near-empty module are refused; larger: a faint module may be wrong",
)

# ---------------------------------------------------------------- what is worth a word (advice, not numerics)

CUT_LIMIT = _row(
    "CUT_LIMIT",
    0.05,
    "of the energy",
    why="nobody has been seen to tell apart pictures of a smaller cut",
    breaks="smaller: every cut is remarked on; larger: a visible loss is not",
)
EMPTY_RESULT = _row(
    "EMPTY_RESULT",
    0.05,
    "of the sources' strength",
    why="a result this faint changes no picture",
    breaks="smaller: a merge that does nothing passes in silence; larger: averages are warned of",
)
INFLATED = _row(
    "INFLATED",
    1.5,
    "× the sources together",
    why="from here pictures over-bake",
    breaks="larger: over-baked merges pass in silence; below 1: plain sums are warned of",
)
OPPOSITE = _row(
    "OPPOSITE",
    -0.9995,
    "cosine",
    why="the mirror of PARALLEL: past it an arc between two sources is no way rather than another",
    breaks="towards 0: sources that merely differ are called opposite; towards −1: opposites pass in silence",
)
SAME_SIZE = _row(
    "SAME_SIZE",
    0.02,
    "of the strength",
    why="nobody sees a merge become two per cent stronger",
    breaks="smaller: what is there already is advised, rounded; larger: a visible change is not offered",
)
SAME_DIRECTION = _row(
    "SAME_DIRECTION",
    0.995,
    "cosine",
    why="a method this near to what is there only makes it stronger or weaker, which a ratio does, too",
    breaks="smaller: methods that mend something are called rescaling; larger: rescaling is sold as mending",
)
AS_STRONG = _row(
    "AS_STRONG",
    0.25,
    "of the strength",
    why="averages of epochs come out within this of one of them; a sum of two alike is twice as strong",
    breaks="smaller: an average is not offered for being an average; larger: a sum passes for one source",
)
EASED = _row(
    "EASED",
    0.8,
    "of the crosstalk",
    why="a method is worth a change where it lowers it a fifth below that of the sum at the same strength",
    breaks="smaller: a method that halves it is not offered; 1 and more: one that only weakens is",
)
MORE_OF_BOTH = _row(
    "MORE_OF_BOTH",
    0.05,
    "cosine",
    why="what two sources hold in a merge moves by 0.01 between one sample of modules and another",
    breaks="0: noise is a reason for another method; larger: a method that holds more is not offered",
)
MORE_OF_IT = _row(
    "MORE_OF_IT",
    0.15,
    "of the text encoder",
    why="what unrelated LoRAs cost each other by chance is below this",
    breaks="smaller: a whole text encoder is given up for nothing; larger: a real quarrel goes on",
)
GIVEN_UP = _row(
    "GIVEN_UP",
    0.35,
    "of the energy",
    why="text encoders hold a quarter to a third of a usual LoRA; one that holds more is what it is about",
    breaks="smaller: the usual case is never offered; larger: a LoRA of the text encoder is switched off",
)
COMPARABLE = _row(
    "COMPARABLE",
    0.1,
    "of the energy",
    why="a LoRA of the attention alone holds an eighth to a quarter of what one with convolutions does there",
    breaks="smaller: LoRAs that meet in one module are balanced by it; larger: common kinds never are",
)
EVENED = _row(
    "EVENED",
    0.05,
    "of the merge",
    why="a share that falls by less than five points is not seen",
    breaks="smaller: balancing is advised for nothing; larger: an uneven merge is left alone",
)
STANDS_FOR = _row(
    "STANDS_FOR",
    0.1,
    "of the strength, and of the cosine",
    why="near-duplicates and resized files differ from the merge of both by less, and no other file does",
    breaks="smaller: two files of one LoRA stay two; larger: another LoRA is dropped for its likeness",
)
