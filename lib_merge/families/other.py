"""Every model that is not known here: modules keep their spelling, blocks come from the numbers in them."""

from __future__ import annotations

from lib_merge.families.record import Family
from lib_merge.families.shared_facts import TE0

FAMILY = Family(name="other", order=1_000_000, facts=(TE0,))
