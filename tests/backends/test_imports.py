"""The order of imports in mmix_fast: a module imports only those before it."""

import ast
from pathlib import Path

import mmix_fast as m

# Each module may import those before it; a backend or an integration stands on the ops.
ORDER = [
    "scalars",
    "tracing",
    "layouts",
    "validation",
    "validation_targets",
    "arithmetic",
    "mean_scales",
    "reference.terms",
    "reference.mixing",
    "reference.targets",
    "reference.cross_entropy",
    "reference.binary_cross_entropy",
    "reference.linear_cross_entropy",
    "reference.shard",
    "reference",
    "linear_chunks",
    "schemas",
    "ops",
    "triton",
    "triton.arguments",
    "triton.kernels",
    "triton.cycles",
    "triton.cutmix",
    "triton.walk",
    "triton.other",
    "triton.loss_rows",
    "triton.loss_logits",
    "triton.loss_targets",
    "triton.loss_kernels",
    "triton.binary_loss_targets",
    "triton.binary_loss_kernels",
    "triton.launch",
    "triton.other_launch",
    "triton.targets_launch",
    "triton.loss_launch",
    "triton.binary_loss_launch",
    "triton.backend",
    "autograd",
    "autograd.apply",
    "autograd.mix",
    "autograd.mix_other",
    "autograd.loss",
    "autograd.linear_loss",
    "autograd.kernels",
    "dispatch",
    "accuracy",
    "functional.values",
    "functional.mixing",
    "functional.targets",
    "functional.mixed_target",
    "functional.loss_arguments",
    "functional.head",
    "distributed.collective",
    "distributed.sharded_loss",
    "distributed.cross_entropy",
    "distributed.linear",
    "distributed.dtensor",
    "distributed",
    "functional.loss",
    "functional.linear_loss",
    "functional.binary_loss",
    "functional.cutmix",
    "functional",
    "sampling",
    "manifold.nested",
    "manifold.messages",
    "manifold.layers",
    "manifold.batch",
    "manifold.inplace",
    "manifold.draws",
    "manifold.forwards",
    "manifold.traces",
    "manifold.hooks",
    "manifold.mixing",
    "manifold.mixup",
    "manifold",
    "",  # mmix_fast itself
    "info",
    "integrations",
    "integrations.mixup_cifar10",
    "integrations.timm_losses",
    "integrations.timm",
    "integrations.torchmetrics",
    "integrations.torchvision",
    "integrations.transformers",
    "integrations.lightning",
]


def module_name(file):
    parts = file.relative_to(Path(m.__file__).parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported(file):
    """The modules of mmix_fast that a file of it imports, by relative imports."""
    package = module_name(file.parent / "__init__.py").split(".")
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("mmix_fast") for alias in node.names), file
        if not isinstance(node, ast.ImportFrom):
            continue
        if not node.level:
            assert not node.module.startswith("mmix_fast"), file
            continue
        base = [*package[: len(package) + 1 - node.level], *(node.module or "").split(".")]
        for alias in node.names:
            names = [".".join(filter(None, path)) for path in ([*base, alias.name], base)]
            yield names[0] if names[0] in ORDER else names[1]


def test_imports_go_one_way():
    files = {module_name(file): file for file in Path(m.__file__).parent.rglob("*.py")}
    assert files.keys() == set(ORDER)
    for at, name in enumerate(ORDER):
        for other in imported(files[name]):
            assert other in ORDER[:at], f"{name} imports {other}"
