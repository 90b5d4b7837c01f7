"""Tiny Hugging Face models, and data for them."""

import torch
import transformers
from torch import nn

EMBEDDING = ["bert.embeddings"]


def config(**options):
    return transformers.BertConfig(
        **{
            "vocab_size": 20,
            "hidden_size": 8,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "num_labels": 3,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
        | options
    )


def training_arguments(folder, **options):
    return transformers.TrainingArguments(
        output_dir=str(folder),
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **options,
    )


def rows(label, count=8):
    mask = torch.ones(5, dtype=torch.int64)
    return [
        {"input_ids": (torch.arange(5) * i) % 20, "attention_mask": mask, "labels": label(i)}
        for i in range(count)
    ]


def single(i):
    return i % 3


def multi(i):
    return [float(i % 2), float(i % 3 == 0), 1.0]


def classifier(**options):
    return transformers.BertForSequenceClassification(config(**options))


def gpt2(kind):
    return kind(
        transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    )


class Own(nn.Module):
    """A user's own model; ``give`` turns its logits into its output."""

    def __init__(self, give=None, classes=3):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, classes)
        self.give = give or (lambda z: {"logits": z})

    def forward(self, input_ids, labels=None):
        return self.give(self.head(self.embed(input_ids).mean(1)))


class OwnBert(transformers.BertPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.bert, self.head = transformers.BertModel(config), nn.Linear(8, 3)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None):
        return {"logits": self.head(self.bert(input_ids, attention_mask).pooler_output)}


class Renamed(transformers.BertForSequenceClassification):
    pass


class Adapter(nn.Module):
    """Like a PEFT model: the wrapper is called, and the base model has the config."""

    def __init__(self, base):
        super().__init__()
        self.base_model, self.config = base, base.config

    def get_base_model(self):
        return self.base_model

    def forward(self, input_ids, attention_mask=None, labels=None):
        return self.base_model(input_ids, attention_mask, labels=labels)
