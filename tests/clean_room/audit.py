"""Checks that the files of `make wheel` are what they claim to be:  python audit.py dist

The stable ABI (abi3audit), no libraries except the system's and torch's (auditwheel), the facts of
build.json, the CUDA architectures (cuobjdump), and the same bytes from a second build elsewhere.
"""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

TOOLS = Path(sys.executable).parent
TORCH = {"libc10.so", "libtorch.so", "libtorch_cpu.so"}  # loaded by `import torch`, never shipped


def run(*command: str | Path, **options: object) -> str:
    """Its standard output; its standard error is shown."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, **options)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout}")
    return done.stdout


def expect(what: str, wanted: object, found: object) -> None:
    if wanted != found:
        raise SystemExit(f"{what}: expected {wanted}, found {found}")
    print(f"{what}: {found}")


def libraries(wheel: Path) -> None:
    report = json.loads(run(TOOLS / "auditwheel", "show", "--json", wheel))
    foreign = sorted(set(report["external_libs"]) - TORCH)
    expect("libraries that are neither the system's nor torch's", [], foreign)
    print("platform that its symbols allow:", report["sym_tag"])
    if not report["sym_tag"].startswith("manylinux_"):
        raise SystemExit("they must allow some manylinux, for `auditwheel repair` to name")


def cuobjdump() -> Path:
    triton = importlib.util.find_spec("triton")
    if triton is None:
        raise SystemExit(
            "cuobjdump comes with Triton's wheel, which is missing: pip install triton"
        )
    return Path(triton.submodule_search_locations[0]) / "backends/nvidia/bin/cuobjdump"


def architectures(extension: Path) -> list[str]:
    """Architectures of the machine code, then of the PTX, as nvcc names them."""
    code = set(re.findall(r"\.(sm_\w+)\.cubin", run(cuobjdump(), "--list-elf", extension)))
    ptx = set(re.findall(r"\.sm_(\w+)\.ptx", run(cuobjdump(), "--list-ptx", extension)))
    return sorted(code) + sorted(f"compute_{number}" for number in ptx)


def facts(wheel: Path, commit: str) -> None:
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        extension = Path(archive.extract("mmix_fast/_C.abi3.so", folder))
        claimed = json.loads(archive.read("mmix_fast/build.json"))
        _, version, *tags = wheel.stem.split("-")
        expect("version", claimed["version"], version)
        expect("commit", commit, claimed["commit"])
        expect("tags", ["cp310", "abi3"], tags[:2])
        if claimed["cuda"]:
            expect("CUDA", f"+cuda{claimed['cuda']}", version[version.find("+") :])
            expect(
                "architectures", sorted(claimed["architectures"]), sorted(architectures(extension))
            )


def digest(path: Path) -> str:
    return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def rebuild(sdist: Path, wheel: Path) -> None:
    """Builds again, from the sdist, in another folder, offline: the same bytes must come out."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
        when = archive.getmember(f"{sdist.name.removesuffix('.tar.gz')}/COMMIT").mtime
        env = {**os.environ, "SOURCE_DATE_EPOCH": str(int(when)), "MMIX_FAST_CUDA": "0"}
        source = Path(folder) / sdist.name.removesuffix(".tar.gz")
        command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", folder)
        run(*command, cwd=source, env={**env, "PIP_NO_INDEX": "1"})
        for file in (sdist, wheel):
            expect("built twice", digest(file), digest(Path(folder) / file.name))


def main() -> None:
    folder = Path(sys.argv[1])
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        name = f"{sdist.name.removesuffix('.tar.gz')}/COMMIT"
        commit = archive.extractfile(name).read().decode().strip()
    wheels = sorted(folder.glob("*.whl"))
    for wheel in wheels:
        print(f"== {wheel.name}", flush=True)
        run(TOOLS / "abi3audit", "--strict", "--verbose", wheel)
        libraries(wheel)
        facts(wheel, commit)
    plain = [wheel for wheel in wheels if "+" not in wheel.name]
    expect("wheels without CUDA", 1, len(plain))
    if plain == wheels:
        print("no CUDA wheel is here, so no architectures: `make wheel` builds one where nvcc is")
    rebuild(sdist, plain[0])


if __name__ == "__main__":
    main()
