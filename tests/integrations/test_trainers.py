"""Lightning, Hugging Face and mixup-cifar10: real training, a few steps."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mmix_fast.integrations.mixup_cifar10 import mixup_criterion, mixup_data


def data():
    return TensorDataset(torch.randn(24, 6), torch.randint(0, 3, (24,)))


@pytest.mark.deep
@pytest.mark.parametrize("attribute", [None, "net"])
def test_lightning(tmp_path, attribute):
    pytest.importorskip("pytorch_lightning")
    import pytorch_lightning as pl

    from mmix_fast.integrations.lightning import ManifoldMixupCallback

    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
            self.seen, self.checks = [], []

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            x, y = batch
            loss = self.mixup.loss(self(x), y)
            self.seen.append(self.mixup.layer)
            return loss

        def validation_step(self, batch, _):
            x, y = batch
            z = self(x)
            self.checks.append((self.mixup.loss(z, y), F.cross_entropy(z, y), self.mixup.layer))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    model = Model()
    names = ["", "net.1"] if attribute is None else ["", "1"]
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        callbacks=[
            ManifoldMixupCallback(
                names, alpha=1.0, module=attribute, generator=torch.Generator().manual_seed(0)
            )
        ],
    )
    loader = DataLoader(data(), 8)
    trainer.fit(model, loader, loader)
    assert len(model.seen) == 9 and set(model.seen) == set(names)
    for ours, plain, layer in model.checks:
        torch.testing.assert_close(ours, plain)
        assert layer is None
    assert not model.net[1]._forward_hooks  # closed at the end
    trainer.validate(model, loader, verbose=False)


@pytest.mark.deep
def test_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers")
    from mmix_fast.integrations.transformers import MixupTrainer

    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
    )
    model = transformers.BertForSequenceClassification(config)
    rows = [
        {
            "input_ids": torch.randint(0, 20, (5,)),
            "attention_mask": torch.ones(5, dtype=torch.int64),
            "labels": torch.tensor(i % 3),
        }
        for i in range(24)
    ]
    seen = []

    class Spy(MixupTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            if model.training:
                z = model(**{k: v for k, v in inputs.items() if k != "labels"}).logits
                seen.append((self.mixup.layer, loss.item(), z.shape))
            return loss

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=6,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Spy(model, arguments, train_dataset=rows, eval_dataset=rows, layers="auto", alpha=1.0)
    assert list(trainer.mixup.layers) == [
        "bert.embeddings.word_embeddings",
        "bert.encoder.layer.0",
        "bert.encoder.layer.1",
    ]
    trainer.train()
    assert len(seen) == 12 and {s[0] for s in seen} == set(trainer.mixup.layers)
    metrics = trainer.evaluate()
    assert trainer.mixup.layer is None and metrics["eval_loss"] > 0
    trainer.mixup.close()
    plain = transformers.Trainer(copy.deepcopy(model), arguments, eval_dataset=rows).evaluate()
    assert abs(plain["eval_loss"] - metrics["eval_loss"]) < 1e-5


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_cifar10(backend, smoothing):
    x, y = torch.randn(6, 3, 4, 4), torch.randint(0, 3, (6,))
    before = x.clone()
    mixed, y_a, y_b, lam = mixup_data(x, y, alpha=1.0, use_cuda=False)
    assert torch.equal(x, before) and torch.equal(y_a, y)
    z = torch.randn(6, 3, requires_grad=True)
    criterion = nn.CrossEntropyLoss(torch.rand(3), label_smoothing=smoothing, ignore_index=2)
    want = lam * criterion(z, y_a) + (1 - lam) * criterion(z, y_b)
    got = mixup_criterion(criterion, z, y_a, y_b, lam)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, z), torch.autograd.grad(want, z))
    other = nn.MSELoss()
    t = torch.randn(6, 3)
    torch.testing.assert_close(
        mixup_criterion(other, z, t, -t, 0.3), 0.3 * other(z, t) + 0.7 * other(z, -t)
    )
    torch.manual_seed(4)
    mixed, y_a, y_b, lam = mixup_data(x, torch.arange(6), alpha=1.0)
    torch.testing.assert_close(mixed, lam * x + (1 - lam) * x[y_b])
    assert torch.equal(y_b.sort().values, torch.arange(6))
    mixed, _, _, lam = mixup_data(x, y, alpha=0.0)
    assert torch.equal(mixed, x) and lam == 1
