"""Everything the tab can ask for: a request in JSON, a reply in JSON; no gradio, so every one is tested as a
function.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from lib_merge.blocks import PresetStore
from lib_merge.errors import MergeError, RecipeError
from lib_merge.kept.energies import Looks
from lib_merge.kept.history import History
from lib_merge.kept.reports import Reports
from lib_merge.library.library import Library
from lib_merge.library.recipebook import RecipeBook
from lib_merge.ui import catalog, merging, planning
from lib_merge.ui.comparisons import Comparisons, Judging
from lib_merge.ui.host import Host
from lib_merge.ui.inspecting import inspected
from lib_merge.ui.jobs import Jobs
from lib_merge.ui.keeping import Keeping
from lib_merge.ui.locating import Locator
from lib_merge.ui.recipes import Recipes
from lib_merge.ui.reopening import Reopening
from lib_merge.ui.state import state_of
from lib_merge.ui.understanding import Understanding

log = logging.getLogger("lib_merge")
MAX_REQUEST = 32 << 20


class Actions(Keeping, Reopening, Recipes, Judging, Understanding):
    """The tab's server side: one per process, shared by every browser; what a browser sets up stays in that
    browser.
    """

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
        self.locator = Locator(self.library)
        self.jobs = Jobs()
        self.begin_understanding(Reports(data / "history" / "reports"))
        self.looks = Looks(data / "energies.json")

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
        return json.dumps(
            {"id": request.get("id") if isinstance(request, dict) else None, **reply}, ensure_ascii=False
        )

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
        """Return every LoRA, or with `since` what changed; `refresh` looks at the folders again."""
        if request.get("refresh"):
            self.library.refresh()
        done, total = self.library.scanning
        if "since" in request:
            return {**self.library.changes(str(request["since"])), "done": done, "total": total}
        return {"items": [item.to_json() for item in self.library.items()], "done": done, "total": total}

    def op_look(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return norm and share of energy per block of LoRAs; what is not measured yet is absent, and
        `reading` is true.
        """
        keys = [str(key) for key in list(request.get("keys") or [])[:64]]
        found = {
            key: known for key in keys if (known := self.looks.look(self.library.resolve(key))) is not None
        }
        return {"found": found, "reading": len(found) < len(keys)}

    def op_inspect(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return everything `inspect` knows of one LoRA."""
        return {"found": inspected(self.library.resolve(str(request.get("key"))))}

    # ---------------------------------------------------------------- merging

    def op_plan(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the merge would make."""
        return {"plan": planning.plan(self, state_of(request))}

    def op_merge(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start a merge and return its job."""
        state = state_of(request)
        planned = planning.plan(self, state)
        if planned["exists"] and not (state.get("output") or {}).get("overwrite"):
            message = f"{planned['name']} exists already; choose another name or allow overwriting."
            raise RecipeError(message)
        for later in ("analyze", "report"):  # the person waits for the merge, not for what is known about one
            self.jobs.stop(later)
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
