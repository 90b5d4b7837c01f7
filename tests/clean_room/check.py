"""Installs wheels in a fresh environment without the source tree, and runs the smoke tests.

    python tests/clean_room/check.py --torch 2.13.0 dist/*.whl

Every CPython >= 3.10 on this machine must load the extension: one file serves them all.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTEST = f"pytest=={version('pytest')}"
# The extension uses Python's API only to initialise itself, and torch's libraries do not use it, so
# the libraries of one torch serve under every CPython.
LOAD = """
import sys, importlib.util as util
spec = util.spec_from_file_location("mmix_fast._C", sys.argv[1])
spec.loader.exec_module(util.module_from_spec(spec))
print("loaded by CPython", sys.version.split()[0])
"""


def clean() -> dict[str, str]:
    """The environment variables, except those that could find a source tree or choose a backend."""
    ours = ("PYTHON", "MMIX_FAST", "VIRTUAL_ENV", "LD_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def run(*command: str | Path, cwd: Path, **env: str) -> None:
    subprocess.run([str(word) for word in command], cwd=cwd, env={**clean(), **env}, check=True)


def ask(python: Path, code: str, cwd: Path) -> str:
    command = [str(python), "-c", code]
    done = subprocess.run(command, cwd=cwd, env=clean(), capture_output=True, text=True, check=True)
    return done.stdout.strip()


def interpreters() -> list[Path]:
    """CPythons of this machine: those of pyenv, and those on PATH except pyenv's shims."""
    names = [f"python3.{minor}" for minor in range(10, 20)]
    pyenv = Path(os.environ.get("PYENV_ROOT", "")) / "versions"
    found = [path for name in names for path in sorted(pyenv.glob(f"*/bin/{name}"))]
    found += [Path(path) for name in names if (path := shutil.which(name)) and "shims" not in path]
    return list({path.name: path for path in found}.values())


def smoke(python: Path, wheel: Path, folder: Path) -> None:
    print(f"== {wheel.name}", flush=True)
    run(python, "-m", "pip", "install", "-q", "--force-reinstall", "--no-deps", wheel, cwd=folder)
    run(python, "-m", "pip", "check", cwd=folder)
    run(python, "-m", "mmix_fast.info", cwd=folder)
    run(python, "-m", "pytest", "-q", "--disable-warnings", "smoke.py", cwd=folder)
    lib = ask(python, "import torch; print(torch.__path__[0])", folder) + "/lib"
    extension = ask(python, "import mmix_fast._C as c; print(c.__file__)", folder)
    for each in interpreters():
        run(each, "-c", LOAD, extension, cwd=folder, LD_LIBRARY_PATH=lib)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", required=True, metavar="VERSION", help="2.14.1: several GB")
    parser.add_argument("--python", default=sys.executable, help="the CPython of the environment")
    parser.add_argument("wheels", nargs="+", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mmix_fast_clean_room_") as name:
        folder = Path(name)
        run(args.python, "-m", "venv", "venv", cwd=folder)
        python = folder / "venv/bin/python"
        run(python, "-m", "pip", "install", "-q", f"torch=={args.torch}", PYTEST, cwd=folder)
        shutil.copy(HERE / "smoke.py", folder)
        for wheel in args.wheels:
            smoke(python, wheel.resolve(), folder)


if __name__ == "__main__":
    main()
