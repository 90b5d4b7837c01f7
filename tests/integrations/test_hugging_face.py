"""MixupTrainer trains tiny models of Hugging Face: losses are right for every kind it supports."""

import copy

import pytest
import torch
import torch.nn.functional as F

import mmix_fast as m

pytestmark = pytest.mark.deep
transformers = pytest.importorskip("transformers")

from mmix_fast.integrations.transformers import MixupTrainer  # noqa: E402
from tests.integrations.hf_models import (  # noqa: E402
    EMBEDDING,
    Adapter,
    Own,
    OwnBert,
    Renamed,
    classifier,
    config,
    multi,
    rows,
    single,
)


def batch(trainer, count=4):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(count)])


def step(trainer):
    """(loss of a batch, its logits, its labels, the draw)."""
    trainer.model.train()
    inputs = batch(trainer)
    kept = dict(inputs)
    loss, outputs = trainer.compute_loss(trainer.model, inputs, return_outputs=True)
    assert dict(inputs) == kept  # the caller's inputs are not changed
    logits = outputs[0] if isinstance(outputs, tuple) else outputs["logits"]
    return loss, logits, inputs["labels"], trainer.mixup.mix


def test_training_and_evaluation(make):
    model, seen = classifier(), []

    class Spy(MixupTrainer):
        def compute_loss(self, model, *args, **kwargs):
            loss = super().compute_loss(model, *args, **kwargs)
            seen.append(self.mixup.layer) if model.training else None
            return loss

    options = {"gradient_accumulation_steps": 2, "max_steps": 6}
    trainer = make(model, arguments=options, count=24, layers="auto", alpha=1.0)
    trainer.__class__ = Spy
    assert list(trainer.mixup.layers) == [
        "bert.embeddings.word_embeddings",
        "bert.encoder.layer.0",
        "bert.encoder.layer.1",
    ]
    trainer.train()
    assert len(seen) == 12 and set(seen) == set(trainer.mixup.layers)
    metrics = trainer.evaluate()
    assert trainer.mixup.layer is None and metrics["eval_loss"] > 0
    trainer.mixup.close()
    plain = transformers.Trainer(
        copy.deepcopy(model), trainer.args, eval_dataset=trainer.eval_dataset
    )
    assert abs(plain.evaluate()["eval_loss"] - metrics["eval_loss"]) < 1e-5


def smooth(z, y, eps=0.0, weight=None):
    return F.cross_entropy(z, y, label_smoothing=eps, weight=weight)


@pytest.mark.parametrize("return_dict", [True, False])
def test_single_label(make, return_dict):
    weight = torch.tensor([1.0, 5.0, 2.0])
    for shape in ((), (1,)):  # also a column of labels
        trainer = make(
            classifier(return_dict=return_dict),
            lambda i, shape=shape: torch.full(shape, i % 3),
            arguments={"label_smoothing_factor": 0.1},
            loss_options={"weight": weight},
        )
        loss, z, y, (perm, lam) = step(trainer)
        y = y.reshape(4)
        want = lam * smooth(z, y, 0.1, weight) + (1 - lam) * smooth(z, y[perm], 0.1, weight)
        torch.testing.assert_close(loss, want)
    trainer.train()


@pytest.mark.parametrize("declared", [True, False])
def test_multi_label(make, declared):
    declare = {"problem_type": "multi_label_classification"} if declared else {}
    weight = torch.tensor([1.0, 5.0, 2.0])
    trainer = make(
        classifier(**declare),
        multi,
        loss_options={"pos_weight": weight},
        mixup_options={"per_sample": True},
    )
    loss, z, y, (perm, lam) = step(trainer)
    mixed = lam[:, None] * y + (1 - lam[:, None]) * y[perm]
    want = F.binary_cross_entropy_with_logits(z, mixed, pos_weight=weight)
    torch.testing.assert_close(loss, want)
    assert trainer.model.config.problem_type == "multi_label_classification"
    trainer.train()
    # Without mixing, and in evaluation, the loss is the model's own.
    trainer.mixup.enabled = False
    trainer.train()
    loss, z, y, mix = step(trainer)
    assert mix is None
    want = F.binary_cross_entropy_with_logits(z, y, pos_weight=weight)
    torch.testing.assert_close(loss, want)
    model = trainer.model.eval()
    own = model(**batch(trainer, 8)).loss
    assert abs(trainer.evaluate()["eval_loss"] - own.item()) < 1e-5
    with pytest.raises(ValueError, match=r"labels of multi-label .* shape \(4, 3\), got int64"):
        step(make(classifier(problem_type="multi_label_classification"), single))


def test_multi_hot_integers_and_half_logits(make):
    declared = classifier(problem_type="multi_label_classification").bfloat16()
    trainer = make(declared, lambda i: torch.tensor([i % 2, 1, 0]))
    loss, z, y, (perm, lam) = step(trainer)
    want = F.binary_cross_entropy_with_logits(z.float(), lam * y + (1 - lam) * y[perm])
    torch.testing.assert_close(loss.float(), want, rtol=0.01, atol=0.01)
    assert z.dtype == torch.bfloat16


def test_options_of_the_multi_label_loss(make):
    """Those of mixed_binary_cross_entropy; they do not apply to an evaluation."""
    declared = classifier(problem_type="multi_label_classification")
    options = {"label_smoothing": 0.2, "weight": torch.tensor([1.0, 2.0, 0.5]), "reduction": "sum"}
    for label in (multi, lambda i: torch.tensor([i % 2 == 0, True, False])):
        trainer = make(declared, label, loss_options=options)
        loss, z, y, mix = step(trainer)
        torch.testing.assert_close(loss, mix.binary_cross_entropy(z, y, **options))
        q = y.float() * 0.8 + 0.1
        want = F.binary_cross_entropy_with_logits(
            z, mix.lam * q + (1 - mix.lam) * q[mix.perm], options["weight"], reduction="sum"
        )
        torch.testing.assert_close(loss, want)
        trainer.train()
        trainer.mixup.close()


def test_the_multi_label_loss_is_that_of_the_forward_that_made_the_logits(make):
    class Probing(MixupTrainer):
        def compute_loss(self, model, *args, **kwargs):
            self.drawn = None
            hook = model.register_forward_hook(self.probe)
            loss = super().compute_loss(model, *args, **kwargs)
            hook.remove()
            return loss

        def probe(self, model, args, output):
            if self.drawn is None:  # another forward in training, before the loss is computed
                self.drawn = self.mixup.mix
                with torch.no_grad():
                    model(**batch(self))

    trainer = make(classifier(problem_type="multi_label_classification"), multi)
    trainer.__class__ = Probing
    loss, z, y, mix = step(trainer)
    torch.testing.assert_close(loss, trainer.drawn.binary_cross_entropy(z, y))
    assert mix is not trainer.drawn


def test_token_classification_and_masked_language_model(make):
    for kind in (transformers.BertForTokenClassification, transformers.BertForMaskedLM):
        labels = lambda i: [i % 3, -100, (i + 1) % 3, 2, -100]  # noqa: E731
        trainer = make(kind(config()), labels)
        loss, z, y, (perm, lam) = step(trainer)
        z = z.movedim(-1, 1)
        want = lam * smooth(z, y) + (1 - lam) * smooth(z, y[perm])
        torch.testing.assert_close(loss, want)
        trainer.train()
        with pytest.raises(TypeError, match=r"labels of For.* must be class indices, got float32"):
            step(make(kind(config()), lambda i: torch.rand(5)))


def test_model_init_makes_a_new_model_and_mixup(make):
    made = []

    def init():
        made.append(classifier())
        return made[-1]

    trainer = make(None, model_init=init)
    for _ in range(2):  # as hyperparameter_search calls it
        before = trainer.mixup
        trainer.train()
        assert trainer.model is made[-1] and trainer.mixup is not before
        loss, z, y, (perm, lam) = step(trainer)
        torch.testing.assert_close(loss, lam * smooth(z, y) + (1 - lam) * smooth(z, y[perm]))
        assert trainer.mixup.layer == EMBEDDING[0]
    assert len(made) == 3
    same = classifier()
    trainer = make(None, model_init=lambda: same)
    trainer.train()
    assert len(same.bert.embeddings._forward_hooks) == 1


def test_users_own_models(make):
    for give in (None, lambda z: (z, 1), lambda z: z):
        data = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows(single)]
        trainer = make(Own(give), layers=["embed"], data=data)
        trainer.train()
        assert trainer.mixup.mix is not None
    for kind in (OwnBert, Renamed):
        make(kind(config())).train()
    soft = OwnBert(config(problem_type="single_label_classification"))
    trainer = make(soft, lambda i: torch.softmax(torch.arange(3.0) * i, 0))
    loss, z, y, (perm, lam) = step(trainer)
    torch.testing.assert_close(loss, smooth(z, lam * y + (1 - lam) * y[perm]))


def test_wrapped_models(make):
    make(Adapter(classifier()), layers=["base_model.bert.embeddings"]).train()


def test_torch_compile(make):
    trainer = make(
        classifier(), arguments={"torch_compile": True, "torch_compile_backend": "eager"}
    )
    trainer.train()
    assert trainer.mixup.layer == EMBEDDING[0] and isinstance(trainer.mixup.mix, m.Mix)


def test_a_second_trainer_for_one_model(make):
    model = classifier()
    first = make(model)
    first.mixup.close()
    make(model).train()
    assert len(model.bert.embeddings._forward_hooks) == 1
