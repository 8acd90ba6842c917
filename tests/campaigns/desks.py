"""The tab's server side on a folder of its own, as the standalone app has it, without gradio."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from lib_merge.ui.desk import Desk
from lib_merge.ui.operations import open_desk
from tests.campaigns.harness import Problem
from tests.campaigns.small_files import METADATA, good, save_tensors
from tests.factories import NAMES, lora_tensors

PAIR = ("0/a.safetensors", "0/sub/b.safetensors")


class FolderHost:
    """A plain machine: LoRAs in `base/loras`, everything else in `base/data`."""

    name = "standalone"
    loader = ""

    def __init__(self, base: Path):
        self.base = base
        self._lock = threading.Lock()

    def lora_folders(self) -> list[Path]:
        return [self.base / "loras"]

    def data_folder(self) -> Path:
        return self.base / "data"

    def extension_folders(self) -> list[Path]:
        return [self.base / "extensions"]

    def device(self) -> torch.device:
        return torch.device("cpu")

    def busy_lock(self) -> contextlib.AbstractContextManager[Any]:
        return self._lock

    def refresh_loras(self, changed: Sequence[Path]) -> None:
        pass

    def alias_of(self, path: Path) -> str:
        return path.stem

    def preview_url(self, path: Path) -> str:
        return ""

    def can_generate(self) -> bool:
        return False

    def option(self, name: str, default: Any) -> Any:
        return "" if name == "lora_merge_folder" else default

    def known_names(self, stems: Collection[str]) -> set[str] | None:
        return None

    def checkpoint(self) -> tuple[str, str]:
        return "", ""

    def claims_name(self, stem: str) -> Path | None:
        return next(
            (path for path in self.lora_folders()[0].rglob("*.safetensors") if path.stem == stem), None
        )


def furnish(base: Path) -> None:
    """Put two LoRAs into a new folder."""
    (base / "loras" / "sub").mkdir(parents=True)
    (base / "loras" / "a.safetensors").write_bytes(save_tensors(good(), METADATA))
    other = {key: value.half() for key, value in lora_tensors(4, rank=3, names=NAMES[:4]).items()}
    (base / "loras" / "sub" / "b.safetensors").write_bytes(save_tensors(other))


def desk_at(base: Path) -> Desk:
    """Return a desk that has looked at its folders."""
    desk = open_desk(FolderHost(base))
    desk.library.refresh(wait=True)
    return desk


def state(name: str = "out", ratios: Sequence[float] = (0.6, 0.4), **fields: Any) -> dict[str, Any]:
    """Return a set-up of the two LoRAs."""
    sources = [{"key": key, "ratio": ratio, "on": True} for key, ratio in zip(PAIR, ratios)]
    output = {"template": name, "overwrite": True, **fields.pop("output", {})}
    return {"sources": sources, "method": "weighted_sum", "output": output, **fields}


def ended(desk: Desk, reply: dict[str, Any], patience: float = 600.0) -> dict[str, Any]:
    """Wait for the job that a reply names, and return how it ended."""
    until = time.monotonic() + patience
    while True:
        now = desk.handle_dict({"op": "job", "job": reply["job"]})
        if not now["ok"] or now["state"] not in ("waiting", "running"):
            return now
        if time.monotonic() > until:
            raise Problem("hang", f"the job {now['what']} did not end in {patience:g} s")
        time.sleep(0.002)


def merged(desk: Desk, **fields: Any) -> dict[str, Any]:
    """Merge what is set up and return the result; `Problem` where the merge was refused."""
    done = ended(desk, desk.handle_dict({"op": "merge", "state": state(**fields)}))
    if done.get("state") != "done":
        raise Problem("other", f"a sound merge was refused: {done.get('error')}")
    return done["result"]
