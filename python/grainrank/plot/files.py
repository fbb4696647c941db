"""Which subcommand wrote a JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# The keys that tell a file of each subcommand, and of benchmarks/suite.py.
KEYS = {
    "demo": ("methods", "best_possible_levels_by_rank"),
    "evaluate": ("top_hits_by_rank", "best_by_rank", "by_level"),
    "suite": ("shapes", "encoder", "left_out"),
    "bench": ("shapes", "loss", "rounds"),
}


def read(path: Path) -> tuple[str, dict[str, Any]]:
    """The subcommand and what it found.

    Raises:
        ValueError: no such file, no JSON, or of none of the subcommands.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; {_mend()}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {_mend()}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); {_mend()}") from error
    for command, keys in KEYS.items():
        if isinstance(found, dict) and all(key in found for key in keys):
            return command, found
    raise ValueError(f"{path} is of none of demo, evaluate, bench and the suite; {_mend()}")


def _mend() -> str:
    return (
        "name a file that `grainrank bench --out FILE` (or demo, evaluate, benchmarks/suite.py) "
        "wrote"
    )


def read_all(paths: list[Path]) -> tuple[str, list[dict[str, Any]]]:
    """One subcommand for all files.

    Raises:
        ValueError: as above; files of different subcommands, or several that are not of bench.
    """
    files = [read(path) for path in paths]
    commands = {command for command, _ in files}
    if len(commands) > 1:
        raise ValueError(
            f"all files must be of one subcommand, got {', '.join(sorted(commands))}; plot them "
            "one by one"
        )
    (command,) = commands
    if len(files) > 1 and command != "bench":
        raise ValueError(
            f"several files are drawn into one picture for bench only, got {len(files)} of "
            f"{command}; plot them one by one"
        )
    return command, [found for _, found in files]
