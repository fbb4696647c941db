"""How many inputs are tried: few, and always the same ones, with the other tests; as many as
FUZZ_EXAMPLES says, other ones every time, with `make fuzz`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fuzz.oracle import TRIED
from hypothesis import HealthCheck, Phase, settings
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(Path(__file__).parents[2] / "build" / "hypothesis")
_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
_SHARED = settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "few",
    _SHARED,
    max_examples=50,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
settings.register_profile("many", _SHARED, max_examples=max(_EXAMPLES, 1))
settings.load_profile("many" if _EXAMPLES else "few")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _EXAMPLES:
        found = ", ".join(f"{count} {what}" for what, count in sorted(TRIED.items()))
        terminalreporter.write_line(f"fuzz: {sum(TRIED.values())} inputs: {found}")
