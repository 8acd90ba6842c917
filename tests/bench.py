"""`python -m tests.bench`: speed and memory of the engine beside the floor of reading and writing, in one run.

Every figure is the best of several runs in a process of its own, page cache warm, so that figures of one table can be
compared; absolute times of a shared machine mean little.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = ROOT.parent / "shared" / "data" / "keys" / "modules.json"
# name, module list, ranks of the sources, conv rank of the sources, rank policy of the truncated merge, its conv rank
CASES = (
    ("SD1.5 r32+r32", "sd15", (32, 32), None, "32", None),
    ("SDXL r32+r32 → 32", "sdxl", (32, 32), None, "32", None),
    ("SDXL r128+r64 → 128", "sdxl", (128, 64), None, "128", None),
    ("SDXL LoCon r16/8 → 16/8", "sdxl_locon", (16, 16), 8, "16", 8),
    ("Flux r16+r16 → 16", "flux", (16, 16), None, "16", None),
)
DENSE_SAMPLE = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--ties", action="store_true", help="also dense TIES on SDXL")
    parser.add_argument(
        "--methods", action="store_true", help="also every scalar and core method beside the weighted sum"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(_job(json.loads(arguments.job))))
        return
    if not MODULES.is_file():
        sys.exit("the module lists (shared/data/keys/modules.json) are not beside this checkout")
    print(f"{_machine()}\n")
    print(
        "| case | floor s | lossless s (× floor) | truncated floor s | truncated s (× floor) | verify s | hash s | "
        "check of loaders, of all | peak MB over import | dense SVD, extrapolated |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        if not arguments.only or arguments.only in case[0]:
            print(_row(case, arguments), flush=True)
    if arguments.ties:
        print(_ties(arguments), flush=True)
    if arguments.methods:
        _methods(arguments)


def _row(case: tuple, arguments: argparse.Namespace) -> str:
    name, key, ranks, conv, policy, conv_policy = case
    with tempfile.TemporaryDirectory() as folder:
        inputs = _inputs(key, ranks, conv, folder)
        best: dict[str, dict] = {}
        jobs = {
            "lossless": {"kind": "merge", "inputs": inputs, "rank": "lossless"},
            "floor_l": {"kind": "floor", "inputs": inputs, "size": None},
            "truncated": {"kind": "merge", "inputs": inputs, "rank": policy, "conv_rank": conv_policy},
            "floor_t": {"kind": "floor", "inputs": inputs, "size": None},
        }
        for _ in range(arguments.repeat):
            for label, job in jobs.items():
                if job["kind"] == "floor":
                    job["size"] = best["lossless" if label == "floor_l" else "truncated"]["bytes"]
                found = _spawn({**job, "folder": folder, "device": arguments.device})
                if label not in best or found["seconds"] < best[label]["seconds"]:
                    best[label] = {**found, "peak": max(found["peak"], best.get(label, found)["peak"])}
        dense = _spawn({"kind": "dense", "modules": key, "ranks": ranks, "conv": conv})
    low, floor_l, cut, floor_t = (best[label] for label in ("lossless", "floor_l", "truncated", "floor_t"))
    return (
        f"| {name} | {floor_l['seconds']:.2f} | {low['seconds']:.2f} ({low['seconds'] / floor_l['seconds']:.1f}) "
        f"| {floor_t['seconds']:.2f} | {cut['seconds']:.2f} ({cut['seconds'] / floor_t['seconds']:.1f}) "
        f"| {low['verify']:.2f} / {cut['verify']:.2f} | {low['hash']:.2f} / {cut['hash']:.2f} "
        f"| {low['loaders']:.1%} / {cut['loaders']:.1%} "
        f"| {low['peak']:.0f} / {cut['peak']:.0f} | {dense['seconds']:,.0f} s |"
    )


def _ties(arguments: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory() as folder:
        inputs = _inputs("sdxl", (32, 32), None, folder)
        job = {"kind": "merge", "inputs": inputs, "rank": "32", "method": "ties", "folder": folder}
        found = _spawn({**job, "device": arguments.device})
    return (
        f"\ndense TIES, SDXL r32+r32 → 32: {found['seconds']:.1f} s wall, {found['verify']:.1f} s of proof, "
        f"{found['cpu']:.1f} CPU s with it, peak {found['peak']:.0f} MB over import, energy kept {found['energy']:.1%}"
    )


def _methods(arguments: argparse.Namespace) -> None:
    """Print merge and merge with proof and hashes, in times of the weighted sum cut to the same rank."""
    from lib_merge.methods import METHODS

    print(
        "\n| SDXL r32+r32 → 32 | merge, × weighted sum | with proof and hashes, × weighted sum |\n|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        inputs = _inputs("sdxl", (32, 32), None, folder)
        base = None
        for name, method in METHODS.items():
            if method.space == "dense":
                continue
            job = {
                "kind": "merge",
                "inputs": inputs,
                "rank": "32",
                "method": name,
                "roles": method.roles,
                "folder": folder,
            }
            runs = [_spawn({**job, "device": arguments.device}) for _ in range(arguments.repeat)]
            alone = min(run["seconds"] for run in runs)
            whole = min(run["seconds"] + run["verify"] + run["hash"] for run in runs)
            base = base or (alone, whole)
            print(f"| `{name}` | {alone / base[0]:.2f} | {whole / base[1]:.2f} |", flush=True)
    assert base is not None
    print(f"\nthe weighted sum: {base[0]:.2f} s, {base[1]:.2f} s with proof and hashes")


def _inputs(key: str, ranks: tuple, conv: int | None, folder: str) -> list[str]:
    job = {"kind": "make", "modules": key, "ranks": ranks, "conv": conv, "folder": folder}
    return _spawn(job)["inputs"]


def _spawn(job: dict) -> dict:
    run = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--job", json.dumps(job)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        sys.exit(run.stderr or f"a measurement ended with exit code {run.returncode} and said nothing")
    return json.loads(run.stdout.splitlines()[-1])


def _job(job: dict) -> dict:
    return {"make": _make, "floor": _floor, "merge": _merge, "dense": _dense}[job["kind"]](job)


def _make(job: dict) -> dict:
    from lib_merge.files.writer import write_safetensors
    from lib_merge.samples import synthetic_lora

    rows = json.loads(MODULES.read_text())[job["modules"]]
    inputs = []
    for seed, rank in enumerate(job["ranks"]):
        path = Path(job["folder"]) / f"source{seed}.safetensors"
        write_safetensors(path, synthetic_lora(rows, rank, seed=seed, conv_rank=job["conv"]), {})
        inputs.append(str(path))
    return {"inputs": inputs}


def _floor(job: dict) -> dict:
    """load_file of the inputs, touch every page, save_file of a file of the output's size."""
    import torch
    from safetensors.torch import load_file, save_file

    start = time.perf_counter()
    touched = 0
    for path in job["inputs"]:
        for tensor in load_file(path).values():
            touched += int(tensor.reshape(-1).view(torch.uint8)[::4096].sum(dtype=torch.int64))
    rest = max(0, job["size"])
    chunk = torch.zeros(min(rest, 1 << 20) // 2, dtype=torch.float16)
    tensors = {f"t{i}": chunk.clone() for i in range(rest // max(chunk.numel() * 2, 1))}
    made = time.perf_counter()
    clone_cost = made - start
    start_save = time.perf_counter()
    save_file(tensors, str(Path(job["folder"]) / "floor.safetensors"))
    saved = time.perf_counter() - start_save
    load_only = _load_only(job["inputs"])
    return {"seconds": min(clone_cost, load_only) + saved, "peak": 0.0, "touched": touched}


def _load_only(inputs: list[str]) -> float:
    import torch
    from safetensors.torch import load_file

    start = time.perf_counter()
    for path in inputs:
        for tensor in load_file(path).values():
            int(tensor.reshape(-1).view(torch.uint8)[::4096].sum(dtype=torch.int64))
    return time.perf_counter() - start


def _timed(module: str, *names: str) -> list[float]:
    """Have functions of a module note the seconds that each call of them takes."""
    place, noted = importlib.import_module(module), []

    def timed(function):
        def call(*arguments):
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                noted.append(time.perf_counter() - start)

        return call

    for name in names:
        setattr(place, name, timed(getattr(place, name)))
    return noted


def _merge(job: dict) -> dict:
    import safetensors.torch  # noqa: F401 - part of the baseline
    import torch

    from lib_merge.engine.report import peak_rss_mb

    base = peak_rss_mb()
    from lib_merge import Job, Source, merge

    checking = _timed("lib_merge.engine.merge", "written_in", "verdicts")
    if job.get("device", "cpu") != "cpu":
        torch.zeros(1, device=job["device"])
    cpu = time.process_time()
    roles = job.get("roles") or [None] * len(job["inputs"])
    sources = [
        Source(path=Path(path), ratio=r, role=role) for path, r, role in zip(job["inputs"], (0.8, 0.6), roles)
    ]
    report = merge(
        sources,
        save_to=Path(job["folder"]) / "merged.safetensors",
        rank=job["rank"],
        conv_rank=job.get("conv_rank"),
        method=job.get("method", "weighted_sum"),
        job=Job(overwrite=True, device=job.get("device", "cpu")),
    )
    cpu = time.process_time() - cpu
    spent = report.seconds
    apart = spent["verify"] + spent["hash"]
    return {
        "seconds": spent["total"] - apart,
        "verify": spent["verify"],
        "hash": spent["hash"],
        "loaders": sum(checking) / spent["total"],
        "bytes": report.bytes,
        "peak": peak_rss_mb() - base,
        "energy": report.energy_kept,
        "cpu": cpu,
    }


def _dense(job: dict) -> dict:
    """The usual route on a sample of modules, one per shape: build ΔW, full SVD; scaled up by parameter count."""
    import torch

    rows = json.loads(MODULES.read_text())[job["modules"]]
    shapes: dict[tuple[int, int], int] = {}
    for _, _, out, columns, kernel in rows:
        shape = (out, columns * max(kernel, 1) ** 2)
        shapes[shape] = shapes.get(shape, 0) + 1
    cost = {shape: count * min(shape) ** 2 * max(shape) for shape, count in shapes.items()}
    sample = sorted(shapes, key=lambda shape: min(shape) ** 2 * max(shape))[:DENSE_SAMPLE]
    start = time.perf_counter()
    work = 0.0
    for out, columns in sample:
        up, down = torch.randn(out, sum(job["ranks"])), torch.randn(sum(job["ranks"]), columns)
        torch.linalg.svd(up @ down, full_matrices=False)
        work += min(out, columns) ** 2 * max(out, columns)
        if time.perf_counter() - start > 20:
            break
    return {"seconds": (time.perf_counter() - start) / work * sum(cost.values())}


def _machine() -> str:
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{os.cpu_count()} × {model}, torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"


if __name__ == "__main__":
    main()
