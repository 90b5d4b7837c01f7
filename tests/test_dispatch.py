"""Choosing a backend, a missing extension, and the order of imports."""

import ast
from pathlib import Path

import pytest
from cases import run

import mmix_fast as m


def test_dispatch():
    with pytest.raises(
        ValueError, match="backend must be one of cpp, cuda, triton, reference, got 'nope'"
    ):
        m.use_backend("nope").__enter__()
    out = run("import mmix_fast.info as i; print(i.table())").stdout
    assert "cpp" in out and "reference" in out
    call = "import torch, mmix_fast as m; m.mix(torch.rand(2,2), torch.tensor([1,0]), .3);"
    bad = run(call, MMIX_FAST_BACKEND="nope")
    assert "backend must be one of" in bad.stderr


def test_missing_extension_says_what_to_do():
    gone = "import sys; sys.modules['mmix_fast._C'] = None; import torch, mmix_fast as m;"
    call = "m.mix(torch.rand(2,2), torch.tensor([1,0]), .3);"
    done = run(gone + call + call)
    assert done.returncode == 0
    assert done.stderr.count("pip install -e . --no-build-isolation") == 1
    forced = run(gone + "c = m.use_backend('cpp'); c.__enter__();" + call)
    assert "RuntimeError: backend 'cpp' cannot serve this call" in forced.stderr


def test_import_is_quick():
    code = "import torch, time; t = time.time(); import mmix_fast; print(time.time() - t)"
    assert min(float(run(code).stdout) for _ in range(3)) < 0.15


# Each module may import those before it; a backend or an integration stands on the ops.
ORDER = [
    "scalars",
    "tracing",
    "validation",
    "validation_targets",
    "reference",
    "ops",
    "triton_kernels",
    "triton_cycles",
    "triton_cutmix",
    "triton_loss_rows",
    "triton_loss_kernels",
    "triton_launch",
    "triton_loss_launch",
    "triton_backend",
    "dispatch",
    "autograd",
    "accuracy",
    "functional",
    "cutmix",
    "sampling",
    "nested",
    "messages",
    "layers",
    "batch",
    "inplace",
    "draws",
    "forwards",
    "traces",
    "hooks",
    "mixing",
    "manifold",
    "__init__",
    "info",
]


def test_imports_go_one_way():
    package = Path(m.__file__).parent
    assert {file.stem for file in package.glob("*.py")} == set(ORDER)
    for at, name in enumerate(ORDER):
        for node in ast.walk(ast.parse((package / f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                names = [node.module] if node.module else [alias.name for alias in node.names]
                names = [n if n in ORDER else "__init__" for n in names]
                assert all(n in ORDER[:at] for n in names), f"{name} imports {names}"
