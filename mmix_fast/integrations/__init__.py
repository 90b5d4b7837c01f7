"""Drop-ins for other libraries, each imported only on use.

``timm`` (Mixup, SoftTargetCrossEntropy), ``torchvision`` (MixUp, CutMix), ``lightning`` (a
callback), ``transformers`` (a Trainer), ``mixup_cifar10`` (mixup_data, mixup_criterion),
``torchmetrics`` (MixedAccuracy).
"""
