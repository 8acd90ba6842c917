"""Campaigns: inputs by the thousand against the promises that no single test can hold.

    python -m tests.campaigns --minutes 30                      every campaign, each with its share of the time
    python -m tests.campaigns --minutes 5 --only headers        one; may be given several times
    python -m tests.campaigns --minutes 30 --resume run.json    goes on where the run noted in run.json ended
    python -m tests.campaigns --only headers --at 4711          one input once more, its traceback in full

Input n of a seed is always the same one. Whatever was found lies in `test-artefacts/campaigns/NAME/n/`: the
input, and what came of it. The exit code is 1 when anything was found. The campaigns run on Linux (they kill
by signal, fork, and read /proc); on Windows and the Mac they can be imported, and only that.

A finding is any exception that is no MergeError, also one that was only logged; more than 10 seconds of
processor for one input; more than 1 GB of memory for one input; a file that is neither the old nor the new
one; and what each campaign says besides.
"""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:
    from tests.campaigns.harness import Campaign

# name -> module and class; none is imported before it is asked for, as some need other packages than the rest
CAMPAIGNS = {
    "headers": ("headers", "Headers"),
    "keys": ("structures", "Keys"),
    "pickles": ("pickled", "Pickles"),
    "json": ("documents", "Documents"),
    "requests": ("documents", "Requests"),
    "rest": ("documents", "Rest"),
    "kills": ("disks", "Kills"),
    "races": ("racing", "Races"),
    "full-disk": ("disks", "FullDisk"),
    "hours": ("hours", "Hours"),
    "numbers": ("numbers", "Numbers"),
    "atheris": ("coverage", "Atheris"),
    "faulty": ("faulty", "Faulty"),
}
# of these a run is asked for by name: one needs an environment that no test needs, one is there to be caught
ASKED_FOR = ("atheris", "faulty")


def campaign_class(name: str) -> type[Campaign]:
    """Return a campaign by its name."""
    module, kind = CAMPAIGNS[name]
    return getattr(importlib.import_module(f"tests.campaigns.{module}"), kind)
