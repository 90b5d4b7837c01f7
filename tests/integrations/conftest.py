"""Fixtures of the tests against the real libraries."""

import pytest

from benchmarks.torchvision_ops import declare_missing

declare_missing()  # before any test imports torchvision


@pytest.fixture
def make(tmp_path):
    """A function that makes a MixupTrainer for two steps of four rows."""
    from mmix_fast.integrations.transformers import MixupTrainer
    from tests.integrations.hf_models import EMBEDDING, rows, single, training_arguments

    def call(model, label=single, count=8, data=None, arguments=(), **options):
        arguments = training_arguments(
            tmp_path, per_device_train_batch_size=4, **{"max_steps": 2, **dict(arguments)}
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
