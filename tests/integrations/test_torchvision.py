"""The drop-ins for torchvision against its transforms and models; one seed, the same draws."""

import copy
import pickle
import re

import pytest
import torch
import torch.nn.functional as F

import mmix_fast as m

pytestmark = pytest.mark.deep
torchvision = pytest.importorskip("torchvision")

from torchvision import tv_tensors  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from mmix_fast.integrations.torchvision import CutMix, MixUp  # noqa: E402


@pytest.mark.parametrize(("ours", "theirs"), [(MixUp, v2.MixUp), (CutMix, v2.CutMix)])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_transforms_equal_torchvisions(ours, theirs, dense, wrapped):
    images, labels = torch.randn(5, 3, 9, 12), torch.randint(0, 4, (5,))
    labels = F.one_hot(labels, 4) if dense else labels
    images = tv_tensors.Image(images) if wrapped else images
    before = images.clone()
    for seed in range(12):
        torch.manual_seed(seed)
        want, want_target = theirs(alpha=0.7, num_classes=4)(images, labels)
        torch.manual_seed(seed)
        got, target = ours(alpha=0.7, num_classes=4)(images, labels)
        assert type(got) is type(want) and torch.equal(images, before)
        torch.testing.assert_close(torch.Tensor(got), torch.Tensor(want), rtol=0, atol=1e-6)
        torch.testing.assert_close(target, want_target, rtol=0, atol=1e-6)


def test_dictionaries_random_choice_and_batch_sizes():
    batch = {"image": torch.randn(4, 3, 8, 8), "extra": "text", "label": torch.arange(4)}
    for ours, theirs in ((MixUp, v2.MixUp), (CutMix, v2.CutMix)):
        outs = []
        for kind in (ours, theirs):
            torch.manual_seed(1)
            outs.append(kind(num_classes=4, labels_getter=lambda b: b["label"])(batch))
        torch.testing.assert_close(outs[0]["image"], outs[1]["image"])
        torch.testing.assert_close(outs[0]["label"], outs[1]["label"])
        assert outs[0]["extra"] == "text"
        choice = v2.RandomChoice([ours(num_classes=4)])
        assert choice(batch["image"], batch["label"])[1].shape == (4, 4)
        with pytest.raises(ValueError, match="batch size"):
            ours(num_classes=4)(batch["image"], torch.arange(3))


@pytest.mark.parametrize(("ours", "theirs"), [(MixUp, v2.MixUp), (CutMix, v2.CutMix)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_dtypes(ours, theirs, dtype):
    """Images of every dtype that v2 takes; float labels keep their dtype."""
    images = torch.randint(0, 200, (5, 3, 9, 12)).to(dtype)
    hot = F.one_hot(torch.randint(0, 4, (5,)), 4).to(dtype)
    if dtype == torch.uint8 and ours is MixUp:
        with pytest.raises(RuntimeError):
            theirs()(images, hot)
        with pytest.raises(TypeError, match=r"MixUp needs floating images, got uint8.*ToDtype"):
            ours()(images, hot)
        images = images.float()
    torch.manual_seed(2)
    want, want_target = theirs()(images, hot)
    torch.manual_seed(2)
    got, target = ours()(images, hot)
    assert got.dtype == want.dtype and target.dtype == want_target.dtype
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(target, want_target)
    if ours is CutMix:
        assert torch.equal(got, want)


@pytest.mark.parametrize("kind", [MixUp, CutMix])
def test_labels(kind):
    images, labels = torch.rand(5, 3, 9, 12), torch.randint(0, 4, (5,))
    torch.manual_seed(3)
    want = kind(num_classes=4)(images, labels)[1]
    for dtype in (torch.uint8, torch.int16, torch.int32):
        torch.manual_seed(3)
        assert torch.equal(kind(num_classes=4)(images, labels.to(dtype))[1], want)
    for bad in (labels.float(), labels > 1):
        with pytest.raises((TypeError, ValueError), match="target"):
            kind(num_classes=4)(images, bad)
    with pytest.raises(ValueError, match="num_classes must be passed"):
        kind()(images, labels)


@pytest.mark.parametrize("kind", [MixUp, CutMix])
def test_video_refusals_and_pickling(kind):
    labels = torch.arange(4)
    video = tv_tensors.Video(torch.rand(4, 2, 3, 8, 8))
    theirs = getattr(v2, kind.__name__)
    torch.manual_seed(4)
    want = theirs(num_classes=4)({"video": video, "label": labels, "labels": labels})
    torch.manual_seed(4)
    again = pickle.loads(pickle.dumps(kind(num_classes=4)))  # as in a DataLoader's worker
    got = again({"video": video, "label": labels, "labels": labels})
    assert type(got["video"]) is tv_tensors.Video
    torch.testing.assert_close(torch.Tensor(got["video"]), torch.Tensor(want["video"]))
    torch.testing.assert_close(got["labels"], want["labels"])
    for refused in (
        tv_tensors.Mask(torch.zeros(4, 8, 8)),
        tv_tensors.BoundingBoxes(torch.zeros(4, 4), format="XYXY", canvas_size=(8, 8)),
    ):
        with pytest.raises(ValueError, match="does not support"):
            kind(num_classes=4)(torch.rand(4, 3, 8, 8), labels, refused)


@pytest.mark.parametrize("mask_dtype", [torch.uint8, torch.int64], ids=str)
def test_the_example_that_mixes_masks(backend, mask_dtype):
    images = tv_tensors.Image(torch.randint(0, 256, (4, 3, 8, 16), dtype=torch.uint8))
    masks = tv_tensors.Mask(torch.randint(0, 5, (4, 8, 16), dtype=mask_dtype))
    masks[:, 2] = 255  # a line that no loss counts, partly in the box
    model, pasted = torch.nn.Conv2d(3, 5, 1), [images.clone(), masks.clone()]
    names = {
        "images": images,
        "masks": masks,
        "model": model,
        "F": F,
        "torch": torch,
        "mmix_fast": m,
    }
    names |= dict(zip(("top", "bottom", "left", "right"), (1, 6, 3, 11), strict=True))
    code = "\n".join(re.findall(r">>> (.*)", CutMix.__doc__))
    exec(code, names)
    for t in pasted:
        t[..., 1:6, 3:11] = t[names["perm"]][..., 1:6, 3:11]
    assert type(names["images"]) is tv_tensors.Image and type(names["masks"]) is tv_tensors.Mask
    assert names["masks"].dtype == mask_dtype and names["images"].dtype == torch.uint8
    assert torch.equal(names["images"], pasted[0]) and torch.equal(names["masks"], pasted[1])
    want = F.cross_entropy(model(pasted[0] / 255), pasted[1].long(), ignore_index=255)
    torch.testing.assert_close(names["loss"], want, rtol=0, atol=0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_cutmix_keeps_bytes_on_every_backend(backend, channels_last):
    images, labels = torch.randint(0, 256, (5, 3, 8, 16), dtype=torch.uint8), torch.arange(5)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    for seed in range(5):
        torch.manual_seed(seed)
        want, want_target = v2.CutMix(num_classes=5)(images, labels)
        torch.manual_seed(seed)
        got, target = CutMix(num_classes=5)(images, labels)
        assert got.dtype == torch.uint8 and torch.equal(got, want)
        torch.testing.assert_close(target, want_target, rtol=0, atol=1e-6)


def naive(h, mix):
    perm, lam = mix
    return lam * h + (1 - lam) * h[perm]


def resnet_by_hand(net, x, layer, mix):
    x = naive(x, mix) if layer == "" else x
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    for name in ("layer1", "layer2", "layer3", "layer4"):
        x = getattr(net, name)(x)
        x = naive(x, mix) if layer == name else x
    return net.fc(net.avgpool(x).flatten(1))


def vit_by_hand(net, x, layer, mix):
    x = naive(x, mix) if layer == "" else x
    x = net._process_input(x)
    x = torch.cat([net.class_token.expand(len(x), -1, -1), x], 1)
    x = net.encoder.dropout(x + net.encoder.pos_embedding)
    for name, block in net.encoder.layers.named_children():
        x = block(x)
        x = naive(x, mix) if layer == f"encoder.layers.{name}" else x
    return net.heads(net.encoder.ln(x)[:, 0])


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16"])
def test_gradients_are_bit_identical_to_hand_written_mixing(name):
    make = getattr(torchvision.models, name)
    if name == "resnet18":
        model, by_hand, want = make(num_classes=5), resnet_by_hand, ["", "layer1", "layer2"]
    else:
        model, by_hand = make(num_classes=5, image_size=32), vit_by_hand
        want = ["", "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"]
    twin = copy.deepcopy(model)
    mixup = m.ManifoldMixup(model, "auto")
    assert list(mixup.layers) == want
    x, y, seen = torch.randn(4, 3, 32, 32), torch.randint(0, 5, (4,)), set()
    for _ in range(60):
        twin.load_state_dict(model.state_dict())
        model.zero_grad(), twin.zero_grad()
        z = model(x)
        if mixup.layer in seen:
            continue
        seen.add(mixup.layer)
        mixup.loss(z, y).backward()
        hand = by_hand(twin, x, mixup.layer, mixup.mix)
        assert torch.equal(z, hand)
        mixup.mix.cross_entropy(hand, y).backward()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)
        if len(seen) == len(want):
            return
    raise AssertionError(seen)


AUTO = {
    "vgg11": ["", "features.2", "features.5"],
    "densenet121": ["", "features.denseblock1", "features.denseblock2"],
    "mobilenet_v3_small": ["", "features.0", "features.1"],
    "convnext_tiny": ["", "features.0", "features.1"],
    "swin_t": ["", "features.0", "features.1"],
    "regnet_y_400mf": ["", "trunk_output.block1", "trunk_output.block2"],
}


@pytest.mark.parametrize("name", AUTO)
def test_layers_that_auto_picks(name):
    model = getattr(torchvision.models, name)(num_classes=5)
    mixup = m.ManifoldMixup(model, "auto")
    assert list(mixup.layers) == AUTO[name]
    x, y = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    for _ in range(3):
        mixup.loss(model(x), y).backward()
