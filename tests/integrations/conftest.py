"""PyPI's torchvision beside the CPU build of torch lacks its compiled ops. It describes two of them
when imported: where its library can't be loaded they are declared here first, since transforms and
models are pure Python. Where it can be loaded, declaring them again would abort Python.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch


def library_of_torchvision_loads() -> bool:
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # not installed: nothing to stand in for
    try:
        torch.ops.load_library(str(Path(spec.origin).with_name("_C.so")))
    except OSError:
        return False
    return True


if not library_of_torchvision_loads():
    LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@pytest.fixture
def make(tmp_path):
    """Makes a MixupTrainer of two steps of four rows."""
    import transformers
    from hf_models import EMBEDDING, rows, single

    from mmix_fast.integrations.transformers import MixupTrainer

    def call(model, label=single, count=8, data=None, arguments=(), **options):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            **{"max_steps": 2, **dict(arguments)},
        )
        data = rows(label, count) if data is None else data
        return MixupTrainer(
            model,
            arguments,
            train_dataset=data,
            eval_dataset=data,
            **{"layers": EMBEDDING, **options},
        )

    return call
