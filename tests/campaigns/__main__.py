"""`python -m tests.campaigns`; see the package."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.campaigns import ASKED_FOR, CAMPAIGNS, campaign_class
from tests.campaigns.harness import NotHere, Overheard, Place, drawn, scratch, tried
from tests.campaigns.watch import Tally, Watch, details, interruptible, table

sys.path.insert(0, str(Path(__file__).parents[2]))


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all campaigns together")
    parser.add_argument(
        "--only",
        action="append",
        choices=list(CAMPAIGNS),
        metavar="NAME",
        help="this one; may be given again",
    )
    parser.add_argument(
        "--inputs", type=int, default=0, help="of each, and no more; as many as it aims at by default"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", type=Path, help="keeps counts and next inputs, and goes on with them")
    parser.add_argument("--at", type=int, help="try this one input here, and show what comes of it")
    for hidden, kind in (("--worker", str), ("--from", int), ("--to", int), ("--place", Path)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    asked = parser.parse_args(given)
    if asked.worker:
        numbers = range(vars(asked)["from"], asked.to)
        campaign_class(asked.worker).work(asked.seed, iter(numbers), Place(asked.place), asked.place)
        return 0
    names = asked.only or [name for name in CAMPAIGNS if name not in ASKED_FOR]
    if asked.at is not None:
        return _at(names[0], asked.seed, asked.at)
    return _run(names, asked.seed, asked.minutes * 60, asked.resume, asked.inputs)


def _at(name: str, seed: int, number: int) -> int:
    kind = campaign_class(name)
    with scratch() as folder, Overheard() as overheard:
        campaign = kind(folder)
        inputs = campaign.make(number, drawn(kind, seed, number))
        outcome, found = tried(campaign, number, inputs, overheard)
        for file, data in inputs.items():
            print(f"{file}: {data[:2000]!r}")
        print(found.text if found else outcome)
        campaign.close()
    return int(found is not None)


def _run(names: Sequence[str], seed: int, seconds: float, resume: Path | None, inputs: int) -> int:
    tallies: dict[str, Tally] = {}
    if resume is not None and resume.exists():
        kept = json.loads(resume.read_text(encoding="utf-8"))
        seed = kept["seed"]
        tallies = {name: Tally.from_json(data) for name, data in kept["campaigns"].items()}
    current: list[Watch] = []
    interruptible(lambda: current[-1] if current else None)

    def save() -> None:
        if resume is not None:
            data = {"seed": seed, "campaigns": {name: tally.to_json() for name, tally in tallies.items()}}
            beside = resume.with_suffix(".new")
            beside.write_text(json.dumps(data, indent=1), encoding="utf-8")
            beside.replace(resume)

    until = time.monotonic() + seconds
    shares = {name: campaign_class(name).share for name in names}
    for index, name in enumerate(names):
        tally = tallies.setdefault(name, Tally())
        tally.not_run = ""
        left = until - time.monotonic()
        share = shares[name] / sum(shares[other] for other in names[index:])
        current.append(Watch(campaign_class(name), seed, tally, save, inputs))
        try:
            current[-1].run(left * share)
        except NotHere as error:
            tally.not_run = "" if tally.inputs else str(error)
            print(f"{name}: {error}", file=sys.stderr)
        print(f"{details({name: tally})}", file=sys.stderr, flush=True)
        if current[-1].stopped:
            break
    save()
    print(table(tallies))
    return int(any(tally.findings.total() for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
