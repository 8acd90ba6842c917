"""Everything that must be found, so that a test can see that it is."""

from __future__ import annotations

import logging
import os
import random
import threading
from pathlib import Path

import numpy as np

from tests.campaigns.harness import Campaign, Inputs, Problem

WHAT = (
    "nothing",
    "raises",
    "hangs",
    "takes memory",
    "dies",
    "logs",
    "ends a thread",
    "is in parts",
    "nothing",
)


class Faulty(Campaign):
    """Input n shows the fault of that number."""

    name = "faulty"
    aim = len(WHAT)
    most_cpu = 4.0

    def make(self, number: int, rng: random.Random) -> Inputs:
        return {"what.txt": WHAT[number % len(WHAT)].encode()}

    def attempt(self, inputs: Inputs) -> str:
        what = inputs["what.txt"].decode()
        if what == "raises":
            return {}["nowhere"]
        while what == "hangs":
            pass
        if what == "takes memory":
            np.ones(160 << 20)
        if what == "dies":
            os.abort()
        if what == "logs":
            try:
                Path("\0").stat()
            except ValueError:
                logging.getLogger("lib_merge").exception("it went on all the same")
        if what == "ends a thread":
            thread = threading.Thread(target=lambda: 1 / 0)
            thread.start()
            thread.join()
        if what == "is in parts":
            raise Problem("partial", "half of it")
        return "ended well"
