"""Builds the sdist and wheels from it, offline, and uses them in fresh environments.

`make wheelcheck`, or `python tests/wheelcheck/check.py --quick` by a Python that has
requirements.txt. Everything is left in build/wheelcheck, the environments only with --keep.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import cross
import tomllib

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "wheelcheck"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPTS = "Scripts" if os.name == "nt" else "bin"


@dataclasses.dataclass(frozen=True)
class Environment:
    """A Python, and what it is given of grainrank's dependencies."""

    name: str
    python: str  # "3.11"
    requirements: tuple[str, ...]


def environments(quick: bool) -> list[Environment]:
    """The pinned versions; and the oldest and the newest that are supported."""
    here = "{}.{}".format(*sys.version_info)
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
        if re.match(r"(torch|numpy)==", line)
    )  # fmt: skip
    chosen = [Environment("pinned", here, tuple(f"{k}=={v}" for k, v in pinned.items()))]
    if quick:
        return chosen
    lowest = SETTINGS["project"]["requires-python"].removeprefix(">=")
    bounds = tuple(x.replace(">=", "==") for x in SETTINGS["project"]["dependencies"])
    chosen.append(Environment("oldest", lowest, bounds))
    highest = next((v for v in reversed(pythons()) if interpreter(v)), here)
    chosen.append(Environment("newest", highest, ("torch", "numpy")))
    return chosen


def pythons() -> list[str]:
    """The versions that wheels are made for, oldest first."""
    builds = SETTINGS["tool"]["cibuildwheel"]["build"]
    return [f"3.{re.match('cp3([0-9]+)-', name)[1]}" for name in builds]  # type: ignore[index]


def interpreter(version: str) -> str | None:
    """A Python of that version: this one, of the PATH, of pyenv, or of Windows' launcher."""
    named = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [sys.executable, *([named] if named else []), *pyenv.glob(f"{version}.*/bin/python")]
    ask = "import sys; print('{}.{}'.format(*sys.version_info))"
    for path in map(str, found):
        done = subprocess.run([path, "-c", ask], capture_output=True, text=True)
        if done.stdout.strip() == version:
            return path
    return None


def run(*command: str | Path, offline: bool = False, **variables: str) -> str:
    """Its output; where it fails, that is printed, and the check ends."""
    words = [str(word) for word in command]
    if offline:
        words = [*no_network(), *words]
    done = subprocess.run(
        words, text=True, env={**os.environ, **variables}, cwd=WORK,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout}\nwheelcheck: exit code {done.returncode} of {words}")
    return done.stdout


def no_network() -> list[str]:
    """What a command is started with, to have no network; [] where the system has no such thing."""
    unshare = shutil.which("unshare")
    words = [unshare or "unshare", "--map-root-user", "--net"]
    if unshare is None or subprocess.run([*words, "true"], capture_output=True).returncode != 0:
        return []
    return words


def say(name: str, text: str) -> None:
    print(f"{name:<16} {text}", flush=True)


def new_environment(folder: Path, python: str, requirements: Sequence[str]) -> Path:
    """Its Python."""
    run(python, "-m", "venv", "--clear", folder)
    made = folder / SCRIPTS / "python"
    run(made, "-m", "pip", "install", "--quiet", *requirements)
    return made


def make_sdist() -> Path:
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", WORK, ROOT)
    (sdist,) = WORK.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "CMakeLists.txt", "csrc/bindings.cpp", "kernels/cuda/pairs.cuh"}
    wanted |= {"tests/conftest.py", *SETTINGS["project"]["license-files"]}
    check_names(sdist, wanted, names)
    say("sdist", f"{len(names)} files, {sdist.stat().st_size >> 10} KiB")
    return sdist


def make_wheel(sdist: Path, version: str, python: str) -> Path:
    """From the unpacked sdist, elsewhere than here, without network; with a platform tag."""
    here = WORK / f"build-{version}"
    tools = ("cmake", "ninja")
    made = new_environment(here, python, (*SETTINGS["build-system"]["requires"], *tools))
    path = os.pathsep.join([str(here / SCRIPTS), os.environ["PATH"]])
    wheels = here / "dist"
    run(made, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--wheel-dir", wheels, sdist, offline=True,
        PATH=path, PIP_NO_INDEX="1", GRAINRANK_CUDA="OFF")  # fmt: skip
    (wheel,) = wheels.glob("*.whl")
    if sys.platform == "linux":
        run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", here / "repaired", wheel,
            PATH=os.pathsep.join([str(Path(sys.executable).parent), path]))  # fmt: skip
        (wheel,) = (here / "repaired").glob("*.whl")
        if "-manylinux_2_" not in wheel.name:
            raise SystemExit(f"wheelcheck: {wheel.name} has no manylinux tag")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    natives = [name for name in names if re.match(r"grainrank/_native\..*(so|pyd)$", name)]
    strangers = [x for x in names if not re.match(r"grainrank(/|-[^/]*\.dist-info/)", x)]
    if len(natives) != 1 or strangers:
        raise SystemExit(f"wheelcheck: {wheel.name} has {natives} and {strangers}")
    licences = {f"licenses/{x}" for x in SETTINGS["project"]["license-files"]}
    inside = {name.partition(".dist-info/")[2] for name in names} | names
    check_names(wheel, {"grainrank/py.typed", "grainrank/kernels/tiles.py", *licences}, inside)
    say(f"wheel {version}", f"{wheel.name}, {len(names)} files, {wheel.stat().st_size >> 10} KiB")
    return wheel


def check_names(file: Path, wanted: set[str], names: set[str]) -> None:
    if wanted - names:
        raise SystemExit(f"wheelcheck: {file.name} lacks {sorted(wanted - names)}")


def use(wheel: Path, environment: Environment, python: str, keep: bool) -> None:
    """With a PATH on which nothing is, and the native library taken away at the end."""
    start = time.monotonic()
    folder = WORK / f"env-{environment.name}"
    made = new_environment(folder, python, environment.requirements)
    # torch may bring it; the C++ passes need none.
    run(made, "-m", "pip", "uninstall", "--quiet", "--yes", "triton")
    run(made, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    empty = WORK / "empty"
    empty.mkdir(exist_ok=True)
    script = ROOT / "tests" / "wheelcheck" / "use.py"
    out = run(made, script, offline=True, PATH=str(empty))
    versions, _, losses, *_ = out.splitlines()
    run(folder / SCRIPTS / "grainrank", "--version", offline=True, PATH=str(empty))
    (native,) = folder.rglob("grainrank/_native.*")
    native.unlink()
    fallback = run(made, script, "--without-native", offline=True, PATH=str(empty)).splitlines()[2]
    say(environment.name, f"{versions} ({time.monotonic() - start:.0f} s)")
    say("", losses)
    say("", fallback)
    if not keep:
        shutil.rmtree(folder)


def check_cibuildwheel() -> None:
    """It accepts its section of pyproject.toml, for every system."""
    for system, machines in (("linux", "x86_64,aarch64"), ("macos", "arm64"), ("windows", "AMD64")):
        found = run(
            sys.executable, "-m", "cibuildwheel", "--print-build-identifiers",
            "--platform", system, "--archs", machines, ROOT,
        ).split()  # fmt: skip
        expected = len(pythons()) * len(machines.split(","))
        if len(found) != expected:
            raise SystemExit(f"wheelcheck: {system} has {found}, expected {expected} wheels")
        say("cibuildwheel", " ".join(found))


def main() -> None:
    parser = argparse.ArgumentParser(description="Build and use grainrank's wheels as users do.")
    parser.add_argument(
        "--quick", action="store_true", help="this Python and the pinned torch, no other compilers"
    )
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    arguments = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    say("network", "cut off by the kernel" if no_network() else "refused within Python alone")
    check_cibuildwheel()
    sdist = make_sdist()
    wheels: dict[str, Path] = {}
    for environment in environments(arguments.quick):
        python = interpreter(environment.python)
        if python is None:
            say(environment.name, f"NOT TRIED: no Python {environment.python} was found")
            continue
        if environment.python not in wheels:
            wheels[environment.python] = make_wheel(sdist, environment.python, python)
        use(wheels[environment.python], environment, python, arguments.keep)
    if not arguments.quick:
        cross.main(WORK / "cross", sdist)


if __name__ == "__main__":
    main()
