"""What an installed grainrank does without network, compiler and optional libraries.

Run by the Python that it is installed for, `python tests/wheelcheck/use.py`, in a fresh environment
that has its dependencies alone; cibuildwheel does the same with every wheel. `--without-native`:
the native library is missing. Reaching for the network is an error, and so is starting a program.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
import pkgutil
import sys

REFUSED = (
    "socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname",
    "urllib.Request", "http.client.connect",
    "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork",
)  # fmt: skip
# What Python's `platform` may start, to name the system.
ALLOWED = {"uname", "cmd.exe", "ver"}
# Modules are for these, and may want them.
OPTIONAL = {
    "accelerate", "datasets", "matplotlib", "open_clip", "PIL", "rich", "safetensors",
    "sentence_transformers", "simple_icd_10_cm", "transformers", "triton", "trl",
}  # fmt: skip
MODULES = 100  # fewer, and not all were found


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook."""
    if event not in REFUSED:
        return
    if event == "subprocess.Popen" and os.path.basename(str(arguments[0])).lower() in ALLOWED:
        return
    # Not an Exception: nobody catches it.
    raise SystemExit(f"grainrank must reach for nothing outside the process: {event} {arguments}")


def import_all() -> None:
    """Every module imports, or names an optional library that is missing."""
    import grainrank

    found, missing = 0, set()
    for module in pkgutil.walk_packages(
        grainrank.__path__, "grainrank.", onerror=lambda name: None
    ):
        if module.name.rpartition(".")[2].startswith(("_native", "_cuda")):
            continue
        try:
            importlib.import_module(module.name)
            found += 1
        except ModuleNotFoundError as error:
            missed = error.__cause__ if isinstance(error.__cause__, ImportError) else error
            library = (missed.name or "").partition(".")[0]
            if library not in OPTIONAL:
                raise
            missing.add(library)
        except ImportError as error:
            # `from . import _cuda` and `_native`, where they are not built.
            if not any(f"'{name}' from" in str(error) for name in ("_cuda", "_native")):
                raise
    if found < MODULES:
        raise SystemExit(f"only {found} modules were imported, of {MODULES} at least")
    present = sorted(OPTIONAL & set(sys.modules))
    print(f"modules: {found} imported; wanted by others: {', '.join(sorted(missing))}")
    if present:
        raise SystemExit(f"not a fresh environment, it has {', '.join(present)}")


def train_a_step(backends: tuple[str, ...]) -> None:
    """Losses and gradients in float64 are the reference's; ranks and search work."""
    import torch

    import grainrank

    generator = torch.Generator().manual_seed(0)

    def step(name: str, loss: str) -> list[torch.Tensor]:
        generator.manual_seed(1)
        queries, candidates = torch.randn(2, 65, 40, dtype=torch.float64, generator=generator)
        grains = torch.randint(0, 3, (65, 3), generator=generator)
        scale = torch.tensor(14.0, dtype=torch.float64)
        leaves = [x.requires_grad_() for x in (queries, candidates, scale)]
        value = getattr(grainrank, loss)(
            queries,
            candidates,
            grainrank.GrainKeys(grains, grains),
            logit_scale=scale,
            backend=name,
        )
        return [value, *torch.autograd.grad(value, leaves)]

    losses = ("multi_level_ranking_loss", "clip_loss", "sup_con_loss", "pairwise_ranking_loss")
    for loss in losses:
        expected = step("reference", loss)
        for name in backends:
            torch.testing.assert_close(step(name, loss), expected, rtol=1e-9, atol=1e-12)

    queries, candidates = torch.randn(2, 65, 40, generator=generator)
    ranks = grainrank.positive_ranks(queries, candidates)
    best = grainrank.search(queries, candidates, k=1)
    hits = torch.tensor([row == hit for row, hit in enumerate(best.indices[:, 0].tolist())])
    recall = grainrank.metrics.recall_at(ranks, 1)
    torch.testing.assert_close(recall.flatten().bool(), hits)
    print(f"losses: {', '.join(losses)} agree on {', '.join(backends)} and reference")


def expect_the_fallback() -> None:
    """Without the native library: `auto` says so and takes the reference; `cpu` says the mend."""
    import torch

    import grainrank

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("grainrank").addHandler(handler)
    queries, candidates = torch.randn(2, 8, 4)
    grainrank.info_nce_loss(queries, candidates, temperature=0.1)
    if not any("auto picked reference" in line and "native library" in line for line in said):
        raise SystemExit(f"auto did not say that it fell back: {said}")
    try:
        grainrank.info_nce_loss(queries, candidates, temperature=0.1, backend="cpu")
    except RuntimeError as error:
        if "reinstall grainrank with a C++ compiler" not in str(error):
            raise
    else:
        raise SystemExit('backend="cpu" ran without the native library')
    print("without the native library: auto picked reference, cpu said the mend")


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--without-native"]):
        raise SystemExit(f"usage: use.py [--without-native], got {arguments}")
    import numpy
    import torch

    sys.addaudithook(refuse)
    import grainrank
    from grainrank.__main__ import main as command

    installed = importlib.metadata.version("grainrank")
    if grainrank.__version__ != installed:
        raise SystemExit(f"__version__ is {grainrank.__version__}, the metadata's is {installed}")
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, numpy {numpy.__version__}")
    import_all()
    if arguments:
        expect_the_fallback()
        train_a_step(())
    else:
        train_a_step(("cpu", "auto"))
    for name in ("info", "check"):
        if command([name]) != 0:
            raise SystemExit(f"python -m grainrank {name} failed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
