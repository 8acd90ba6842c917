"""Merges by the thousand in one process, as a tab that is left open makes them: memory, threads, open files and the
folders stay as they are after the first minutes.
"""

from __future__ import annotations

import json
import random
import statistics
import threading
from pathlib import Path

from tests.campaigns.desks import desk_at, ended, furnish, merged, state
from tests.campaigns.harness import Campaign, Inputs, NotHere, Problem, memory_now
from tests.campaigns.small_files import generated, save_tensors

# merges before what is there counts as usual, and between two looks
FIRST, EVERY = 300, 50
# what memory may grow by over the whole run, and for each merge
GROWTH, EACH = 48 << 20, 4 << 10
METHODS = ("weighted_sum", "ties", "slerp", "core_ties", "dare", "karcher", "tsv", "average")
# other adapters of the same modules in the same sizes
KINDS = ("loha", "lokr", "full")
NAMES = tuple(f"out{number}" for number in range(12))


class Hours(Campaign):
    """See the module."""

    name = "hours"
    share = 2.0

    def __init__(self, folder: Path):
        super().__init__(folder)
        if not Path("/proc/self/fd").exists():
            raise NotHere("it reads /proc")
        furnish(folder)
        for name in KINDS:
            (folder / "loras" / f"{name}.safetensors").write_bytes(save_tensors(generated()[name]))
        self._desk = desk_at(folder)
        self._count = 0
        self._looks: list[tuple[int, int, int, int]] = []

    def make(self, number: int, rng: random.Random) -> Inputs:
        method = rng.choice(METHODS)
        more = [f"0/{name}.safetensors" for name in KINDS]
        asked = state(
            rng.choice(NAMES), (round(rng.uniform(-1, 1), 2), round(rng.uniform(0.1, 1), 2)), method=method
        )
        if method == "weighted_sum" and rng.random() < 0.5:
            asked["sources"].append({"key": rng.choice(more), "ratio": 0.5})
        asked["rank"] = {"mode": "rank", "value": 4} if rng.random() < 0.5 else {"mode": "auto"}
        return {"state.json": json.dumps({"state": asked, "besides": rng.random()}).encode()}

    def attempt(self, inputs: Inputs) -> str:
        case = json.loads(inputs["state.json"])
        self._ask("plan", state=case["state"])
        done = merged_with(self._desk, case["state"])
        if case["besides"] < 0.1:
            self._ask("verify", key=done["key"], job=True)
        elif case["besides"] < 0.2:
            self._ask("analyze", state=case["state"], job=True)
        elif case["besides"] < 0.3:
            self._ask("history", search="out")
        elif case["besides"] < 0.4:
            self._ask("remove", entry=done["entry"])
        elif case["besides"] < 0.5:
            self._ask("inspect", key=done["key"])
        self._count += 1
        if self._count >= FIRST and self._count % EVERY == 0:
            self._look()
        return case["state"]["method"]

    def _ask(self, op: str, *, job: bool = False, **fields: object) -> None:
        reply = self._desk.handle_dict({"op": op, **fields})
        if job and reply["ok"]:
            reply = ended(self._desk, reply)
        if not reply["ok"] or reply.get("state") == "failed":
            raise Problem("other", f"{op} was refused: {reply.get('error')}")

    def _look(self) -> None:
        files = len(list(Path("/proc/self/fd").iterdir()))
        self._looks.append((self._count, memory_now(), threading.active_count(), files))
        left = [path.name for path in self.folder.rglob(".*") if path.is_file()]
        if left:
            raise Problem("other", f"left in the folders: {left[:5]}")
        _, _, threads, opened = self._looks[0]
        now = self._looks[-1]
        if now[2] > threads + 2:
            raise Problem("other", f"{now[2]} threads after {self._count} merges, {threads} at first")
        if now[3] > opened + 4:
            raise Problem("other", f"{now[3]} open files after {self._count} merges, {opened} at first")

    def close(self) -> None:
        if len(self._looks) < 4:
            return
        # a look may fall on a moment of much: the lower half of the first and of the last quarter is held together
        quarter = max(2, len(self._looks) // 4)
        first, last = (
            statistics.median_low([look[1] for look in part])
            for part in (self._looks[:quarter], self._looks[-quarter:])
        )
        merges = self._looks[-1][0] - self._looks[0][0]
        if last - first > GROWTH + EACH * merges:
            raise Problem("other", f"memory grew by {(last - first) / 1e6:.0f} MB in {merges} merges")


def merged_with(desk, asked: dict) -> dict:
    """Merge a set-up; one of which nothing is left is taken back to its plainest form."""
    done = ended(desk, desk.handle_dict({"op": "merge", "state": asked}))
    if done.get("state") == "done":
        return done["result"]
    if "nothing would be left" not in str(done.get("error")):
        raise Problem("other", f"a sound merge was refused: {done.get('error')}")
    return merged(desk, name=asked["output"]["template"])
