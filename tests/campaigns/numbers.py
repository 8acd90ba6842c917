"""Random recipes against plain float64: what is saved is what the paper says of these matrices, however a source is
factored or spelt, in whatever order where order does not matter, with absent modules as zeros, and as large as foreseen.
"""

from __future__ import annotations

import inspect
import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load

from lib_merge import METHODS, Job, Recipe, Source, parse_policy, run_recipe
from lib_merge.engine.cancelling import CANCELLED
from lib_merge.engine.survey import foresee
from lib_merge.engine.tree import open_tree
from lib_merge.errors import MergeError
from lib_merge.methods.registry import KnobKind
from tests.campaigns.harness import Campaign, Inputs, Problem
from tests.campaigns.small_files import save_tensors
from tests.factories import CONV, NAMES, dense_of, relative
from tests.reference import kinds
from tests.reference import merge as basic
from tests.reference import methods as reference

# out, in, kernel and block of the modules, and how PEFT calls them
MODULES = {
    NAMES[0]: (24, 20, 0, "IN04", "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
    NAMES[2]: (18, 18, 0, "M00", "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_v"),
    NAMES[3]: (14, 30, 0, "OUT07", "unet.up_blocks.2.attentions.1.transformer_blocks.0.ff.net.2"),
    CONV: (12, 10, 3, "OUT03", "unet.up_blocks.1.resnets.0.conv1"),
}
TOLERANCE = {"float": 1e-5, "fp16": 1e-3, "bf16": 8e-3}
# the least that a result may be of what went into it before float32 cannot tell it from nothing
FAINT = 1e-5
RANDOM = {"dare", "dare_ties", "della", "knots_dare", "core_dare"}
EXACT = [name for name, method in METHODS.items() if method.space != "dense" and name not in RANDOM]
Deltas = dict[str, np.ndarray]


class Numbers(Campaign):
    """See the module."""

    name = "numbers"
    aim = 20_000
    share = 2.0

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._count = 0

    def make(self, number: int, rng: random.Random) -> Inputs:
        kind = rng.choice(
            (
                "reference",
                "reference",
                "reference",
                "gauge",
                "order",
                "absent",
                "identity",
                "foreseen",
                "foreseen",
            )
        )
        name = rng.choice(
            EXACT if kind == "gauge" else [one for one in METHODS if kind != "absent" or one not in RANDOM]
        )
        method = METHODS[name]
        least, most = method.sources
        count = (
            rng.randrange(max(least, 1 if kind == "foreseen" else 2), min(most or 4, 4) + 1)
            if kind != "identity"
            else 1
        )
        if kind == "identity" and least > 1:
            name, method = "weighted_sum", METHODS["weighted_sum"]
        roles = list(method.roles)
        rng.shuffle(roles)
        sources = [
            {
                "ratio": rng.choice(
                    (
                        1.0,
                        0.5,
                        -0.5,
                        round(rng.uniform(-1.5, 1.5), 3) or 1.0,
                        0.0 if name == "weighted_sum" else 0.7,
                    )
                ),
                "blocks": {
                    block: rng.choice((0.25, 1.0, 2.0))
                    for block in ("IN04", "M00", "OUT03")
                    if rng.random() < 0.2
                },
                "role": roles[at] if roles else None,
            }
            for at in range(count)
        ]
        case = {
            "kind": kind, "method": name, "knobs": _knobs(method, count, rng), "sources": sources, "seed": rng.randrange(9),
            "rank": rng.choice((None, None, None, "lossless" if method.space != "dense" else None, "2", "5", "energy:0.9", "error:0.1")),
            "precision": rng.choice(("float", "float", "float", "fp16", "bf16")) if kind in ("reference", "foreseen") else "float",
            "group": count > 2 and kind in ("reference", "foreseen") and rng.random() < 0.3 and (most is None or most >= count - 1) and count - 1 >= least and not roles,
            "prune": rng.choice((0.0, 0.0, 0.0, 0.05)) if kind == "foreseen" else 0.0, "conv_rank": rng.choice((None, None, 1, 6)) if kind == "foreseen" else None,
        }  # fmt: skip
        files = {f"{'abcd'[at]}.safetensors": save_tensors(_source(rng)) for at in range(count)}
        return {"case.json": json.dumps(case).encode(), **files}

    def attempt(self, inputs: Inputs) -> str:
        case = json.loads(inputs["case.json"])
        paths = []
        for name, data in inputs.items():
            if name != "case.json":
                (self.folder / name).write_bytes(data)
                paths.append(self.folder / name)
        return getattr(self, f"_{case['kind']}")(case, paths)

    # ---------------------------------------------------------------- what is held against what

    def _reference(self, case: dict, paths: list[Path]) -> str:
        knobs = dict(case["knobs"])
        if case["method"] in RANDOM:
            knobs |= {"drop_rate": 0.0} | ({"epsilon": 0.0} if case["method"] == "della" else {})
        knobs.pop("trim_scope", None)
        if case["rank"] in (None, "lossless"):
            case = {**case, "rank": None if METHODS[case["method"]].space != "dense" else "100"}
        sources = [_deltas(path) for path in paths]
        wanted = _wanted(case, sources, knobs)
        found = self._run({**case, "knobs": knobs}, paths)
        size = _size(wanted)
        going_in = sum(abs(one["ratio"]) * _size(deltas) for one, deltas in zip(case["sources"], sources))
        if found is None or size <= FAINT * going_in:
            if size > 100 * FAINT * going_in:
                raise Problem("other", f"{case['method']}: nothing was left of {size:.3g}")
            return "nothing left"
        wanted, allowed = _cut(wanted, case["rank"])
        allowed += TOLERANCE[case["precision"]] * going_in / max(size, going_in * 1e-3)
        error = (
            relative(found, wanted)
            if case["rank"] in (None, "100")
            else relative(found, _wanted(case, sources, knobs))
        )
        if error <= allowed or error <= allowed + self._conditioning(case, sources, knobs):
            return f"as the reference: {METHODS[case['method']].space}"
        raise Problem(
            "other", f"{case['method']} differs from the reference by {error:.2e}, {allowed:.2e} is allowed"
        )

    def _conditioning(self, case: dict, sources: list[Deltas], knobs: dict) -> float:
        """Return by how much the result moves when the sources move by what float32 cannot hold."""
        plain = _wanted(case, sources, knobs)
        most = 0.0
        for seed in range(4):
            g = np.random.default_rng(seed)
            moved = [
                {name: d * (1 + 2e-7 * g.standard_normal(d.shape)) for name, d in deltas.items()}
                for deltas in sources
            ]
            most = max(most, relative(_wanted(case, moved, knobs), plain))
        return 30 * most

    def _gauge(self, case: dict, paths: list[Path]) -> str:
        first = self._run(case, paths)
        other = [_gauged(path, at) for at, path in enumerate(paths)]
        return self._alike(case, first, self._run(case, other), 5e-4, "factored otherwise", paths)

    def _order(self, case: dict, paths: list[Path]) -> str:
        if not METHODS[case["method"]].symmetric:
            return "order matters"
        # masks are a file's own, wherever it stands
        turned = {
            **case,
            "sources": case["sources"][::-1],
            "knobs": {
                name: value[::-1] if isinstance(value, list) else value
                for name, value in case["knobs"].items()
            },
        }
        first, other = self._run(case, paths), self._run(turned, paths[::-1])
        return self._alike(case, first, other, 2e-4, "in another order", paths)

    def _absent(self, case: dict, paths: list[Path]) -> str:
        tensors = load(paths[0].read_bytes())
        # as many ranks as the sources have is another number where one lacks the module
        case = {**case, "rank": case["rank"] or ("100" if METHODS[case["method"]].space == "dense" else None)}
        gone = next(
            name
            for name, (*_, spelt) in MODULES.items()
            if any(key.startswith((f"{name}.", f"{spelt}.")) for key in tensors)
        )
        mine = tuple(f"{front}." for front in (gone, MODULES[gone][-1]))
        part = {key: value for key, value in tensors.items() if not key.startswith(mine)}
        zeros = {
            key: torch.zeros_like(value) if key.startswith(mine) and not key.endswith("alpha") else value
            for key, value in tensors.items()
        }
        if not part:
            return "nothing left to be absent"
        found = []
        for changed in (part, zeros):
            paths[0].write_bytes(save_tensors(changed))
            found.append(self._run(case, paths))
        return self._alike(case, found[0], found[1], 2e-5, "with zeros for what is absent", None)

    def _identity(self, case: dict, paths: list[Path]) -> str:
        plain = {
            **case,
            "method": "weighted_sum",
            "knobs": {},
            "rank": None,
            "sources": [{**case["sources"][0], "blocks": {}}],
        }
        ratio = plain["sources"][0]["ratio"]
        found = self._run(plain, paths)
        if found is None:
            return "nothing left"
        wanted = {name: ratio * value for name, value in _deltas(paths[0]).items()}
        if relative(found, wanted) > 2e-6:
            raise Problem(
                "other", f"one source at ratio {ratio} comes back by {relative(found, wanted):.2e} off"
            )
        return "itself"

    def _foreseen(self, case: dict, paths: list[Path]) -> str:
        recipe = _recipe(case, paths)
        out = self.folder / "m.safetensors"
        try:
            with open_tree(recipe, drop_unsupported=True) as tree:
                size = foresee(tree)
            report = run_recipe(recipe, out, job=Job(side_car=False, overwrite=True))
        except MergeError as error:
            return _nothing(error)
        saved, foreseen = _ranks(out), {name: module.rank for name, module in size.modules.items()}
        cancelled = {name for name, why in report.left_out.items() if why == CANCELLED}
        if not set(saved) <= set(foreseen) or any(rank > foreseen[name] for name, rank in saved.items()):
            raise Problem("other", f"{case['method']}: saved {saved}, foreseen at most {foreseen}")
        if report.bytes != out.stat().st_size or report.bytes > size.bytes:
            raise Problem("other", f"{case['method']}: {report.bytes} bytes, foreseen at most {size.bytes}")
        wrong = [
            name
            for name, module in size.modules.items()
            if module.exact and name not in cancelled and saved.get(name) != module.rank
        ]
        if wrong or (size.exact and not cancelled and report.bytes != size.bytes):
            raise Problem(
                "other",
                f"{case['method']}: foreseen exactly {size.bytes} bytes, {foreseen}, and saved {report.bytes}, {saved}",
            )
        return "as foreseen" if size.exact else "within what was foreseen"

    def _alike(
        self,
        case: dict,
        one: Deltas | None,
        other: Deltas | None,
        most: float,
        what: str,
        paths: list[Path] | None,
    ) -> str:
        if one is None or other is None:
            if (one is None) != (other is None) and _size(one or other or {}) > 1e-3:
                raise Problem("other", f"{case['method']} {what}: nothing is left of one of them")
            return "nothing left"
        error = relative(other, one)
        if error <= most:
            return "the same"
        if paths is not None and case["rank"] not in (
            "energy:0.9",
            "error:0.1",
        ):  # ill-conditioned ones differ from the reference as much
            knobs = {name: value for name, value in case["knobs"].items() if name != "trim_scope"}
            if case["method"] not in RANDOM and error <= most + 3 * self._conditioning(
                case, [_deltas(path) for path in paths], knobs
            ) * _gap(one, case["rank"]):
                return "as near as float32 can tell"
        elif (
            case["rank"] in ("energy:0.9", "error:0.1") and error <= 0.5
        ):  # the rank itself may turn at the threshold
            return "the same but for a rank at the threshold"
        raise Problem("other", f"{case['method']} {what}: differs by {error:.2e}")

    def _run(self, case: dict, paths: list[Path]) -> Deltas | None:
        out = self.folder / "m.safetensors"
        try:
            run_recipe(_recipe(case, paths), out, job=Job(side_car=False, overwrite=True))
        except MergeError as error:
            _nothing(error)
            return None
        return dense_of(out)


def _nothing(error: MergeError) -> str:
    if "nothing would be left" not in str(error):
        raise Problem("other", f"a sound recipe was refused: {error}") from error
    return "nothing left"


def _gap(found: Deltas, rank: str | None) -> float:
    """Return how much a cut magnifies a small change: by the gap in the spectrum where it cuts."""
    if rank is None or not rank.isdigit():
        return 1.0
    worst = 1.0
    for value in found.values():
        s = np.linalg.svd(value, compute_uv=False)
        if int(rank) < len(s) and s[0] > 0:
            worst = max(worst, s[0] / max(s[int(rank) - 1] - s[int(rank)], s[0] * 1e-6))
    return worst


# ------------------------------------------------------------------------------------------------ recipes and sources


def _knobs(method: Any, count: int, rng: random.Random) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for knob in method.knobs:
        if knob.kind is KnobKind.CHOICE:
            values[knob.name] = "module" if knob.name == "trim_scope" else rng.choice(knob.choices)
        elif knob.kind is KnobKind.SWITCH:
            values[knob.name] = rng.random() < 0.5
        elif knob.kind is KnobKind.WHOLE:
            values[knob.name] = rng.randrange(int(knob.minimum), min(int(knob.maximum), count) + 1)
        else:
            span = min(knob.maximum, knob.minimum + 3.0) - knob.minimum
            one = [
                round(knob.minimum + span * rng.choice((0.0, rng.random(), rng.random())), 3)
                for _ in range(count)
            ]
            values[knob.name] = one if str(knob.scope) == "source" and rng.random() < 0.4 else one[0]
    return values


def _recipe(case: dict, paths: list[Path]) -> Recipe:
    method = METHODS[case["method"]]
    sources = [
        Source(path=path, name=path.name, ratio=one["ratio"], blocks=one["blocks"] or None, role=one["role"])
        for path, one in zip(paths, case["sources"])
    ]
    knobs = {
        name: tuple(value) if isinstance(value, list) else value for name, value in case["knobs"].items()
    }
    if case["group"]:
        sources = [Source(recipe=Recipe(tuple(sources[:2])), ratio=0.7, name="group"), *sources[2:]]
        knobs = {name: value[1:] if isinstance(value, tuple) else value for name, value in knobs.items()}
    rank = case["rank"] if not (method.space == "dense" and case["rank"] == "lossless") else None
    recipe = Recipe(
        tuple(sources),
        method=case["method"],
        knobs=knobs,
        precision=case["precision"],
        seed=case["seed"],
        family="SD1",
    )
    return replace(
        recipe, rank=parse_policy(rank) if rank else None, prune=case["prune"], conv_rank=case["conv_rank"]
    )


def _source(rng: random.Random) -> dict[str, torch.Tensor]:
    """Return the tensors of a little LoRA: some of the modules, of any kind, in one of two spellings."""
    g = torch.Generator().manual_seed(rng.randrange(1 << 30))
    dtype = rng.choice((torch.float32, torch.float32, torch.float16, torch.bfloat16))

    def r(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g).to(dtype)

    modules = rng.sample(list(MODULES), rng.randrange(2, len(MODULES) + 1))
    peft = rng.random() < 0.2
    tensors: dict[str, torch.Tensor] = {}
    for name in modules:
        out, columns, kernel, _, spelt = MODULES[name]
        rank, side = rng.randrange(1, 7), (kernel, kernel) if kernel else ()
        one = tuple(1 for _ in side)
        kind = "lora" if peft else rng.choice(("lora", "lora", "lora", "tucker", "loha", "lokr", "full"))
        if kind == "tucker" and kernel:
            parts = {
                "lora_up.weight": r(out, rank, 1, 1),
                "lora_down.weight": r(2, columns, 1, 1),
                "lora_mid.weight": r(rank, 2, kernel, kernel),
            }
        elif kind == "loha":
            parts = {f"hada_w{n}_a": r(out, rank) for n in "12"} | {
                f"hada_w{n}_b": r(rank, columns * max(1, kernel**2)) for n in "12"
            }
        elif kind == "lokr":
            parts = {
                "lokr_w1": r(2, 2),
                "lokr_w2_a": r(out // 2, rank),
                "lokr_w2_b": r(rank, columns // 2 * max(1, kernel**2)),
            }
        elif kind == "full":
            parts = {"diff": r(out, columns, *side)}
        else:
            parts = {"lora_up.weight": r(out, rank, *one), "lora_down.weight": r(rank, columns, *side)}
        if peft:
            parts = {f"lora_{'B' if 'up' in role else 'A'}.weight": value for role, value in parts.items()}
        elif kind != "full" and rng.random() < 0.7:
            parts["alpha"] = torch.tensor(rng.choice((1.0, 2.0, 4.0, 0.5))).to(dtype)
        first = next(iter(parts))
        # of one order of size: what is a thousand times fainter than its neighbour drowns in float32's rounding
        parts[first] = (
            parts[first].double() * rng.choice((0.5, 1.0, 3.0)) / np.linalg.norm(_delta(parts, out))
        ).to(dtype)
        tensors |= {f"{spelt if peft else name}.{role}": value for role, value in parts.items()}
    return tensors


def _deltas(path: Path) -> Deltas:
    """Return ΔW of every module of a source, multiplied out in float64 the plainest way."""
    tensors = {key: value.double() for key, value in load(path.read_bytes()).items()}
    found = {}
    for name, (out, *_, spelt) in MODULES.items():
        own = {
            key[len(front) + 1 :]: value
            for front in (name, spelt)
            for key, value in tensors.items()
            if key.startswith(f"{front}.")
        }
        if own:
            found[name] = _delta(own, out)
    return found


def _delta(own: Mapping[str, torch.Tensor], out: int) -> np.ndarray:
    own = {role: value.double() for role, value in own.items()}
    if "diff" in own:
        return own["diff"].flatten(1).numpy()
    if "hada_w1_a" in own:
        return kinds.loha(own, own.get("alpha"))
    if "lokr_w1" in own:
        return kinds.lokr(own, own.get("alpha")).reshape(out, -1)
    up = own.get("lora_up.weight", own.get("lora_B.weight"))
    down = own.get("lora_down.weight", own.get("lora_A.weight"))
    return kinds.lora(up, down, own.get("alpha"), own.get("lora_mid.weight"))


def _gauged(path: Path, seed: int) -> Path:
    """Write a source whose factors are (U·G, G⁻¹·D): the same LoRA."""
    g = torch.Generator().manual_seed(seed)
    tensors = {key: value.float() for key, value in load(path.read_bytes()).items()}
    for key in [key for key in tensors if key.endswith(("lora_up.weight", "lora_B.weight"))]:
        down_key = key.replace("lora_up", "lora_down").replace("lora_B", "lora_A")
        up, down = tensors[key].double(), tensors[down_key].double()
        if key.replace("lora_up", "lora_mid") in tensors and "lora_up" in key:
            continue
        r = down.shape[0]
        u, _, v = torch.linalg.svd(torch.randn(r, r, generator=g, dtype=torch.float64))
        gauge = u @ torch.diag(torch.logspace(0, -2, r, dtype=torch.float64)) @ v
        tensors[key] = (up.flatten(1) @ gauge).reshape(up.shape).float()
        tensors[down_key] = (torch.linalg.inv(gauge) @ down.flatten(1)).reshape(down.shape).float()
    changed = path.with_name(f"g{path.name}")
    changed.write_bytes(save_tensors(tensors))
    return changed


# ------------------------------------------------------------------------------------------------ plain float64


def _wanted(case: dict, sources: list[Deltas], knobs: Mapping[str, Any]) -> Deltas:
    names = sorted({name for deltas in sources for name in deltas})
    asked, listed = case["sources"], sources
    weights: dict[str, list[float]] = {
        name: [one["ratio"] * one["blocks"].get(MODULES[name][3], 1.0) for one in asked] for name in names
    }
    deltas = {name: [d.get(name, np.zeros(_shape(name))) for d in listed] for name in names}
    if case["group"]:
        for name in names:
            (wa, wb, *rest), (a, b, *others) = weights[name], deltas[name]
            weights[name], deltas[name] = [0.7, *rest], [wa * a + wb * b, *others]
        knobs = {name: value[1:] if isinstance(value, list) else value for name, value in knobs.items()}
    if case["method"] == "norm_preserving":
        ratios = [one["ratio"] for one in asked]
        return _norm_preserving(deltas, weights, [0.7, *ratios[2:]] if case["group"] else ratios)
    function = _function(case["method"])
    taken = inspect.signature(function).parameters
    given = {name: value for name, value in knobs.items() if name in taken}
    if case["method"] in ("dare_ties", "della"):
        given = {"trim_fraction": 0.0, "normalize": False, "elect": knobs["elect"]}
    found = {}
    for name in names:
        ordered, own = deltas[name], weights[name]
        if case["method"] == "np_lora" and asked[0]["role"] == "subject":
            ordered, own = ordered[::-1], own[::-1]
        with np.errstate(all="ignore"):
            found[name] = np.nan_to_num(np.asarray(function(ordered, own, **given), dtype=np.float64))
    return found


def _norm_preserving(
    deltas: Mapping[str, list[np.ndarray]], weights: Mapping[str, list[float]], ratios: list[float]
) -> Deltas:
    """c·Σ τᵢ with c = (Σ ‖τᵢ‖ / Σ |ratioᵢ|) / ‖Σ τᵢ‖ over all modules; τᵢ = wᵢΔWᵢ."""
    taus = {name: [w * d for w, d in zip(weights[name], ds)] for name, ds in deltas.items()}
    merged = {name: sum(own) for name, own in taus.items()}
    norms = [_size({name: own[at] for name, own in taus.items()}) for at in range(len(ratios))]
    scale = sum(norms) / sum(map(abs, ratios)) / (_size(merged) or 1.0)
    return {name: value * scale for name, value in merged.items()}


def _function(name: str) -> Callable[..., Any]:
    if name in ("knots_dare", "core_dare", "dare"):
        return basic.weighted_sum
    if name in ("dare_ties", "della"):
        return basic.ties
    return getattr(reference, name, None) or getattr(basic, name)


def _shape(name: str) -> tuple[int, int]:
    out, columns, kernel, *_ = MODULES[name]
    return out, columns * max(1, kernel**2)


def _cut(wanted: Deltas, rank: str | None) -> tuple[Deltas, float]:
    """Return the best that a rank can hold, and the error of that against the whole."""
    if rank is None or rank == "100":
        return wanted, 0.0
    size = _size(wanted)
    lost = 0.0
    for value in wanted.values():
        s = np.linalg.svd(value, compute_uv=False)
        if rank.isdigit():
            kept = int(rank)
        else:
            kind, _, number = rank.partition(":")
            kept = basic.ranks_for(value, **{kind: float(number)}) if s[0] > 0 else 0
        lost += float((s[kept:] ** 2).sum())
    # a rank at the threshold may fall to either side
    return wanted, 1.001 * math.sqrt(lost) / size if size else 0.0


def _size(deltas: Mapping[str, np.ndarray]) -> float:
    return math.sqrt(sum(float(np.square(value).sum()) for value in deltas.values()))


def _ranks(path: Path) -> dict[str, int]:
    """Return module -> rank, 0 for a whole matrix or vectors alone."""
    ranks: dict[str, int] = {}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - no mapping
            name = key.partition(".")[0]
            ranks.setdefault(name, 0)
            if key.endswith("lora_down.weight"):
                ranks[name] = file.get_slice(key).get_shape()[0]
    return ranks
