"""Everything the tab can ask for: a request in JSON, a reply in JSON; no gradio, so every one is tested as a function."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lib_merge.adapters.blocks import BLOCKS
from lib_merge.engine.inspect import inspect_file
from lib_merge.errors import MergeError, RecipeError
from lib_merge.history import History
from lib_merge.presets import PresetStore
from lib_merge.recipe import Source, from_json
from lib_merge.recipebook import RecipeBook
from lib_merge.ui import catalog, merging
from lib_merge.ui.comparisons import Comparisons, Judging
from lib_merge.ui.host import Host
from lib_merge.ui.jobs import Jobs
from lib_merge.ui.keeping import Keeping
from lib_merge.ui.library import Library
from lib_merge.ui.prompt import png_text, read_prompt, write_prompt
from lib_merge.ui.recipes import Recipes
from lib_merge.ui.reports import Reports
from lib_merge.ui.state import from_recipe
from lib_merge.ui.understanding import Understanding

log = logging.getLogger("lib_merge")
MAX_REQUEST = 32 << 20


class Actions(Keeping, Recipes, Judging, Understanding):
    """The tab's server side: one per process, shared by every browser; what a browser sets up stays in that browser."""

    def __init__(self, host: Host) -> None:
        """Open library, presets and history of a host."""
        self.host = host
        data = host.data_folder()
        data.mkdir(parents=True, exist_ok=True)
        self.library = Library(host.lora_folders, data / "library.json", host.preview_url, host.alias_of)
        self.presets = PresetStore(data / "presets.json")
        self.history = History(data / "history")
        self.book = RecipeBook(data / "recipes")
        self.comparisons = Comparisons(data / "comparisons")
        self.jobs = Jobs()
        self.begin_understanding(Reports(data / "history" / "reports"))
        self._looked: dict[tuple[str, int, int], dict[str, Any]] = {}
        self._looking: set[tuple[str, int, int]] = set()
        self._look_lock = threading.Lock()
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="lora-merge-look")

    def handle(self, text: str) -> str:
        """Answer one request of the browser."""
        try:
            if len(text) > MAX_REQUEST:
                message = "the request is too large."
                raise RecipeError(message)
            request = json.loads(text)
            reply = self.handle_dict(request)
        except (ValueError, RecursionError):
            request, reply = {}, {"ok": False, "error": "the request is not valid JSON."}
        except MergeError as error:
            request, reply = {}, {"ok": False, "error": str(error)}
        return json.dumps({"id": request.get("id") if isinstance(request, dict) else None, **reply}, ensure_ascii=False)

    def handle_dict(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a request that is parsed already; errors become one sentence."""
        name = request.get("op") if isinstance(request, Mapping) else None
        work = getattr(self, f"op_{name}", None) if isinstance(name, str) and name.isidentifier() else None
        if work is None:
            return {"ok": False, "error": f"there is no operation {str(name)[:40]!r}."}
        try:
            return {"ok": True, **work(request)}
        except MergeError as error:
            return {"ok": False, "error": str(error)}
        except Exception as error:
            log.exception("the operation %s failed", name)
            return {"ok": False, "error": f"{type(error).__name__}: {str(error)[:300]}"}

    # ---------------------------------------------------------------- once, and the library

    def op_init(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return methods, families, presets, settings."""
        del request
        self.library.refresh()
        return {
            "methods": catalog.methods(),
            "families": catalog.families(),
            "hints": dict(catalog.HINTS),
            "presets": catalog.presets(self.presets),
            "host": self.host.name,
            "can_generate": self.host.can_generate(),
            "settings": {
                "template": self.host.option("lora_merge_template", "{sources}_{method}_{weights}_v{n}"),
                "folder": self.host.option("lora_merge_folder", "merged"),
                "precision": self.host.option("lora_merge_precision", "fp16"),
            },
            "warnings": list(self.presets.take_warnings()),
        }

    def op_library(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return every LoRA; `refresh` looks at the folders again."""
        if request.get("refresh"):
            self.library.refresh()
        done, total = self.library.scanning
        return {"items": [item.to_json() for item in self.library.items()], "done": done, "total": total}

    def op_look(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return norm and share of energy per block of LoRAs; what is not measured yet is absent, and `reading` is true."""
        keys = [str(key) for key in list(request.get("keys") or [])[:64]]
        found = {key: known for key in keys if (known := self._look(key)) is not None}
        return {"found": found, "reading": len(found) < len(keys)}

    def _look(self, key: str) -> dict[str, Any] | None:
        path = self.library.resolve(key)
        state = path.stat()
        stamp = (str(path), state.st_size, state.st_mtime_ns)
        with self._look_lock:
            if stamp not in self._looked and stamp not in self._looking:
                self._looking.add(stamp)
                self._readers.submit(self._measure, path, stamp)
            return self._looked.get(stamp)

    def _measure(self, path: Path, stamp: tuple[str, int, int]) -> None:
        try:
            found = inspect_file(path)
            kept = ("norm", "block_energy", "blocks", "rank", "alpha", "dtype", "kinds", "left_out", "tags")
            looked = {name: found[name] for name in kept}
        except (MergeError, OSError) as error:
            looked = {"problem": str(error)}
        with self._look_lock:
            self._looked[stamp] = looked
            self._looking.discard(stamp)

    def op_inspect(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return everything `inspect` knows of one LoRA."""
        return {"found": inspect_file(self.library.resolve(str(request.get("key"))))}

    # ---------------------------------------------------------------- merging

    def op_plan(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the merge would make."""
        return {"plan": merging.plan(self, _state(request))}

    def op_merge(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start a merge and return its job."""
        state = _state(request)
        planned = merging.plan(self, state)
        if planned["exists"] and not (state.get("output") or {}).get("overwrite"):
            message = f"{planned['name']} exists already; choose another name or allow overwriting."
            raise RecipeError(message)
        self.jobs.stop("analyze")  # the person waits for the merge, not for what will come out
        return self.jobs.start("merge", lambda task: merging.merge_work(self, state, task)).to_json()

    def op_verify(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start to hold a merged LoRA against its recipe."""
        path = self.library.resolve(str(request.get("key")))
        return self.jobs.start("verify", lambda task: merging.verify_work(self, path, task)).to_json()

    def op_job(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return how far a job is."""
        return self.jobs.get(request.get("job")).to_json()

    def op_cancel(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Ask a job to stop."""
        return self.jobs.cancel(request.get("job")).to_json()

    # ---------------------------------------------------------------- recipes and prompts

    def op_open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state that made a merged LoRA, or a history entry."""
        if request.get("recipe"):
            recipe = self.recipe_named(str(request["recipe"]))
        elif request.get("entry"):
            recipe = from_json(self.history.get(str(request["entry"])).recipe, "the entry")
        else:
            path = self.library.resolve(str(request.get("key")))
            recipe = merging.load_stamped(path, None)  # type: ignore[arg-type]
            if recipe is None:
                message = f"{path.name} was not made by this program: there is no recipe in it."
                raise RecipeError(message)
        return {"state": from_recipe(recipe, self.locate, lambda blocks: self.expand(blocks, recipe.family))}

    def locate(self, source: Source) -> str:
        """Return the key of a recipe's source: by its path, by name and size, by size alone; "" when it is gone."""
        if source.path is not None:
            return self.library.key_of(source.path)
        for item in self.library.items():
            path = self.library.resolve(item.key)
            if path.name == source.name and (not source.size or item.size == source.size):
                return item.key
        same = [item.key for item in self.library.items() if source.size and item.size == source.size]
        return same[0] if len(same) == 1 else ""

    def expand(self, blocks: Any, family: str | None) -> dict[str, float]:  # noqa: ANN401
        """Return block weights of any form as {block: weight}."""
        import random

        from lib_merge.blockspec import resolve_blocks

        if not blocks:
            return {}
        if isinstance(blocks, Mapping):
            return {str(name): float(value) for name, value in blocks.items()}
        known = family or {12: "SDXL", 20: "SDXL", 61: "Flux"}.get(
            len(blocks) if isinstance(blocks, list) else 0, "SD1"
        )
        return resolve_blocks(blocks, known, BLOCKS[known], random.Random(0), "the source", store=self.presets)[0]

    def op_blocks(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return {block: weight} of a list, preset or notation typed beside a row."""
        family = str(request.get("family") or "SD1")
        return {"weights": self.expand(str(request.get("text") or "").strip(), family)}

    def op_prompt(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return rows from a prompt or from a generated picture's text."""
        text = str(request.get("text") or "")
        if request.get("image"):
            try:
                text = png_text(base64.b64decode(str(request["image"]).rpartition(",")[2], validate=True))
            except (binascii.Error, ValueError) as error:
                message = "that picture cannot be read."
                raise RecipeError(message) from error
        found = read_prompt(text)
        rows, notes = [], list(found.notes)
        for source in found.sources:
            item = self.library.find(source["name"])
            if item is None:
                notes.append(f"there is no LoRA called {source['name']!r} here")
            weights = self.expand(source.get("blocks"), item.family if item else None)
            te = source.get("te_ratio")
            rows.append(
                {
                    "key": item.key if item else "",
                    "name": source["name"],
                    "ratio": source["ratio"],
                    "te": None if te is None else [te],
                    "blocks": weights,
                    "on": True,
                }
            )
            notes += [f"{source['name']}: {note}" for note in source.get("notes") or []]
        return {"rows": rows, "notes": notes}

    def op_prompt_write(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the rows as prompt tags."""
        rows = [row for row in (_state(request).get("sources") or []) if row.get("on", True) and row.get("key")]
        sources = []
        for row in rows:
            te = row.get("te")
            sources.append(
                {
                    "name": self.host.alias_of(self.library.resolve(str(row["key"]))),
                    "ratio": float(row.get("ratio", 1.0)),
                    "te_ratio": te[0] if te else None,
                    "blocks": row.get("blocks") or None,
                }
            )
        return {"text": write_prompt(sources)}


def _state(request: Mapping[str, Any]) -> Mapping[str, Any]:
    state = request.get("state")
    if not isinstance(state, Mapping):
        message = "the request has no state."
        raise RecipeError(message)
    return state
