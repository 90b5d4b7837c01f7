"""Models, options and labels that MixupTrainer does not support raise an error that says why."""

import pytest
import torch

pytestmark = pytest.mark.deep
transformers = pytest.importorskip("transformers")

from tests.integrations.hf_models import (  # noqa: E402
    Adapter,
    Own,
    OwnBert,
    classifier,
    config,
    gpt2,
    multi,
    rows,
    single,
)

CAUSAL = "whose labels belong to their own position"
QUESTIONS = [{"input_ids": torch.arange(5), "start_positions": 1, "end_positions": 2}] * 8


def t5():
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0
        )
    )


class MyForCausalLM(OwnBert):
    pass


REFUSED = {
    "bert, causal": (lambda: transformers.BertLMHeadModel(config(is_decoder=True)), CAUSAL),
    "gpt2, causal": (lambda: gpt2(transformers.GPT2LMHeadModel), CAUSAL),
    "gpt2, two heads": (lambda: gpt2(transformers.GPT2DoubleHeadsModel), CAUSAL),
    "own, causal": (lambda: MyForCausalLM(config()), CAUSAL),
    "t5": (t5, CAUSAL),
    "pretraining": (lambda: transformers.BertForPreTraining(config()), CAUSAL),
    "choices": (lambda: transformers.BertForMultipleChoice(config()), CAUSAL),
    "questions": (lambda: transformers.BertForQuestionAnswering(config()), CAUSAL),
    "one label": (lambda: classifier(num_labels=1), "num_labels=1, which is regression"),
    "regression": (lambda: classifier(problem_type="regression"), "got 'regression'"),
    "own, regression": (lambda: OwnBert(config(problem_type="regression")), "got 'regression'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_refused_at_construction(make, case):
    build, message = REFUSED[case]
    model = build()
    with pytest.raises(TypeError, match=message):
        make(model, layers="auto")
    assert not any(module._forward_hooks for module in model.modules())


def test_options_refused_at_construction(make, monkeypatch):
    message = "compute_loss_func must be None.*loss_options.*ManifoldMixup"
    with pytest.raises(TypeError, match=message):
        make(classifier(), compute_loss_func=lambda *a, **k: None)
    with pytest.raises(TypeError, match=r"label_names=\['labels_a', 'labels_b'\]"):
        make(classifier(), arguments={"label_names": ["labels_a", "labels_b"]})
    with pytest.raises(TypeError, match=r"loss_options must be of .* got 'wieght'"):
        make(classifier(), loss_options={"wieght": None})
    with pytest.raises(TypeError, match="label smoothing must be given once"):
        make(
            classifier(),
            arguments={"label_smoothing_factor": 0.1},
            loss_options={"label_smoothing": 0.1},
        )
    with pytest.raises(TypeError, match="must be 'mean' or 'sum' to train, got 'none'"):
        make(classifier(), loss_options={"reduction": "none"})
    monkeypatch.setattr(transformers.TrainingArguments, "n_gpu", 2)
    with pytest.raises(TypeError, match=r"args.n_gpu must be 1, got 2.*torchrun"):
        make(classifier())


def test_missing_and_renamed_labels(make):
    data = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows(single)]
    with pytest.raises(TypeError, match="inputs must hold 'labels' to train with, got input_ids"):
        make(classifier(), data=data).train()

    class Targets(Own):
        def forward(self, input_ids, targets=None):
            return super().forward(input_ids)

    data = [{"input_ids": row["input_ids"], "targets": row["labels"]} for row in rows(single)]
    make(Targets(), data=data, layers=["embed"], arguments={"label_names": ["targets"]}).train()


def test_labels_and_logits_refused(make):
    with pytest.raises(TypeError, match=r"labels must be class indices, or config.problem_type"):
        make(OwnBert(config()), multi).train()
    with pytest.raises(TypeError, match=r"the model must give logits, .* got NoneType"):
        make(Own(lambda z: {"scores": z}), layers=["embed"]).train()
    with pytest.raises(TypeError, match="logits must be of two classes or more"):
        make(Own(classes=1), layers=["embed"]).train()


def test_wrapped_models_refused(make):
    with pytest.raises(TypeError, match="which is regression"):
        make(Adapter(classifier(num_labels=1)))
    with pytest.raises(TypeError, match=CAUSAL):
        make(Adapter(gpt2(transformers.GPT2LMHeadModel)))
