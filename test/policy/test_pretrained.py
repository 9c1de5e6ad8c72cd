"""Backbones that others trained: the same numbers from their files, and refusals of wrong ones."""

import hashlib
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from diffusion_policy_ros.contract import Contract, Stream
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy import backbones
from diffusion_policy_ros.policy.backbones import RESNETS, FrozenBatchNorm
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.eyes import ImageEncoder, ImageEncoderSettings
from diffusion_policy_ros.policy.pretrained import KNOWN, load_backbone, read_weights, resnet_name
from diffusion_policy_ros.policy.recipe import Recipe

STRIDES = {"BasicBlock": (1, 0), "Bottleneck": (0, 1, 0)}  # which convolution has the stride


def encoder(height=40, width=48, channels=3, **settings):
    """A camera's encoder of whole pictures."""
    stream = Stream("/c", "sensor_msgs/msg/Image", (height, width, channels), name="camera")
    given = {"crop": 1.0, "features": 0, "pool": "mean", "norm": "frozen", **settings}
    return ImageEncoder(stream, ImageEncoderSettings(**given)).eval()


class Reference:
    """A ResNet of torchvision's names and batch norms in eval mode, written out."""

    def __init__(self, kind):
        self.block, self.counts = RESNETS[kind]
        self.tensors, self.random = {}, torch.Generator().manual_seed(0)
        self.convolution("conv1", "bn1", 3, 64, 7)
        width, expansion = 64, self.block.expansion
        for stage, count in enumerate(self.counts):
            for number in range(count):
                inner, name = 64 * 2**stage, f"layer{stage + 1}.{number}"
                out = inner * expansion
                sizes = [(width, inner, 3), (inner, inner, 3)]
                if expansion > 1:
                    sizes = [(width, inner, 1), (inner, inner, 3), (inner, out, 1)]
                for i, size in enumerate(sizes, 1):
                    self.convolution(f"{name}.conv{i}", f"{name}.bn{i}", *size)
                if number == 0 and (stage or width != out):
                    self.convolution(f"{name}.downsample.0", f"{name}.downsample.1", width, out, 1)
                width = out
        self.tensors["fc.weight"] = torch.zeros(10, width)
        self.tensors["fc.bias"] = torch.zeros(10)

    def convolution(self, conv, norm, channels, out, kernel):
        """Random weights of a convolution and its batch norm."""
        draw = lambda *size: torch.randn(size, generator=self.random)  # noqa: E731
        fan = channels * kernel**2
        self.tensors[f"{conv}.weight"] = draw(out, channels, kernel, kernel) * (2 / fan) ** 0.5
        self.tensors[f"{norm}.weight"] = 1 + 0.1 * draw(out)
        self.tensors[f"{norm}.bias"] = 0.1 * draw(out)
        self.tensors[f"{norm}.running_mean"] = 0.1 * draw(out)
        self.tensors[f"{norm}.running_var"] = 1 + 0.2 * draw(out).abs()
        self.tensors[f"{norm}.num_batches_tracked"] = torch.tensor(5)

    def normed(self, maps, conv, norm, stride=1, padding=0):
        """Convolution and batch norm."""
        given = {name: self.tensors[f"{norm}.{name}"] for name in ("weight", "bias")}
        moments = (self.tensors[f"{norm}.running_mean"], self.tensors[f"{norm}.running_var"])
        maps = functional.conv2d(
            maps, self.tensors[f"{conv}.weight"], stride=stride, padding=padding
        )
        return functional.batch_norm(maps, *moments, **given)

    def __call__(self, maps):
        maps = self.normed(maps, "conv1", "bn1", 2, 3).relu()
        maps = functional.max_pool2d(maps, 3, 2, 1)
        for stage, count in enumerate(self.counts):
            for number in range(count):
                name, before = f"layer{stage + 1}.{number}", maps
                down = 2 if stage and not number else 1
                places = STRIDES[self.block.__name__]
                for i, has in enumerate(places, 1):
                    kernel = self.tensors[f"{name}.conv{i}.weight"].shape[2]
                    stride = down if has else 1
                    maps = self.normed(
                        maps, f"{name}.conv{i}", f"{name}.bn{i}", stride, kernel // 2
                    )
                    maps = maps.relu() if i < len(places) else maps
                if f"{name}.downsample.0.weight" in self.tensors:
                    parts = (f"{name}.downsample.0", f"{name}.downsample.1")
                    before = self.normed(before, *parts, down)
                maps = (maps + before).relu()
        return maps


@pytest.mark.parametrize("kind", RESNETS)
def test_a_resnet_is_torchvision_s(kind, tmp_path):
    """Its file gives the maps that it gives there, to rounding; the head is not used."""
    reference, camera = Reference(kind), encoder(name=kind)
    torch.save(reference.tensors, tmp_path / "resnet.pth")
    found = load_backbone(camera.backbone, kind, read_weights(tmp_path / "resnet.pth"))
    assert "fc.weight" in found.left and not found.fresh
    pixels = torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        maps, expected = camera.backbone(pixels), reference(pixels)
    assert float((maps - expected).abs().max() / expected.abs().max()) < 1e-5


def test_names_by_place_are_known_too():
    """As children()[:-2] are called, by which LeRobot and robomimic save."""
    for theirs, places in (
        ("conv1.weight", "0.weight"),
        ("bn1.running_var", "1.running_var"),
        ("layer1.1.bn2.bias", "4.1.bn2.bias"),
        ("layer4.0.downsample.1.weight", "7.0.downsample.1.weight"),
    ):
        assert resnet_name(theirs, "resnet34") == resnet_name(places, "resnet34")
    assert resnet_name("layer2.0.conv1.weight", "resnet34") == "7.conv1.weight"
    assert resnet_name("layer2.0.downsample.1.bias", "resnet18") == "6.around.1.bias"
    assert resnet_name("fc.weight", "resnet18") is None


def test_replaced_norms_stay_fresh():
    """norm: group with a file of batch norms: its convolutions alone."""
    reference, camera = Reference("resnet18"), encoder(norm="group")
    found = load_backbone(camera.backbone, "resnet18", reference.tensors)
    assert found.taken == 20
    assert "1.weight" in found.fresh
    assert torch.equal(camera.backbone[0].weight, reference.tensors["conv1.weight"])
    assert (camera.backbone[1].weight == 1).all()


@pytest.mark.parametrize(("channels", "expected"), [(1, "sum"), (4, "zeros")])
def test_other_channels_than_three(channels, expected):
    """One sees the sum of the colours, a fourth (depth) begins at nothing."""
    reference, camera = Reference("resnet18"), encoder(channels=channels)
    load_backbone(camera.backbone, "resnet18", reference.tensors)
    weight, theirs = camera.backbone[0].weight, reference.tensors["conv1.weight"]
    if expected == "sum":
        torch.testing.assert_close(weight, theirs.sum(1, keepdim=True))
    else:
        assert torch.equal(weight[:, :3], theirs)
        assert (weight[:, 3:] == 0).all()


def test_frozen_norms_are_not_learned():
    """Their numbers are buffers: saved, and no optimiser sees them."""
    camera = encoder()
    names = {name for name, _ in camera.named_parameters()}
    assert not any(".norm" in name or "backbone.1." in name for name in names)
    assert "backbone.1.running_mean" in camera.state_dict()
    torch.testing.assert_close(FrozenBatchNorm(2)(torch.ones(1, 2, 3, 3)), torch.ones(1, 2, 3, 3))


def test_pixels_are_scaled_as_the_weights_want_them():
    """(x / 255 - mean) / std a channel; by default from -1 to 1."""
    seen = []
    for given in ({}, {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}):
        camera = encoder(**given)
        camera.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        frames = torch.randint(0, 256, (2, 40, 48, 3), dtype=torch.uint8)
        camera.encode(frames)
        mean, std = (torch.tensor(given.get(k, (0.5,) * 3)) for k in ("mean", "std"))
        expected = ((frames / 255 - mean) / std).permute(0, 3, 1, 2)
        torch.testing.assert_close(seen[-1], expected, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="2 numbers, camera has 3 channels"):
        encoder(mean=(0.5, 0.5))


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"pool": "keypoints", "keypoints": 5}, 10),
        ({"pool": "keypoints", "keypoints": 5, "features": 7, "relu": True}, 7),
        ({"pool": "mean"}, 512),
        ({"pool": "attention", "features": 12}, 12),
    ],
)
def test_every_pool_gives_features_and_learns(settings, size):
    """Of the size that it says; nothing below zero after a ReLU."""
    camera = encoder(norm="group", **settings).train()
    out = camera(torch.randint(0, 256, (2, 2, 40, 48, 3), dtype=torch.uint8), torch.rand(2, 2))
    assert out.shape == (2, 2, size) and camera.features == size
    out.square().sum().backward()
    assert all(w.grad is not None for w in camera.parameters() if w.requires_grad)
    assert not settings.get("relu") or out.min() >= 0


TWO = Contract.load("mini_lift").text


def policy_of(**settings):
    """Two cameras and a small network."""
    recipe = Recipe.from_text(
        "policy: {denoiser: {down_dims: [8, 16], n_groups: 4}}",
        overrides={
            "policy.image_encoder": "{name: small_conv, keypoints: 4, features: 0}",
            **{f"policy.{key}": value for key, value in settings.items()},
        },
    )
    return DiffusionPolicy(recipe, Contract.from_text(TWO))


def test_cameras_may_share_an_encoder():
    """One set of weights, two cameras' gradients; another size is refused by name."""
    one, two = policy_of(), policy_of(**{"image_encoder.shared": "true"})
    eyes = list(two.encoder.image_encoders.values())
    assert eyes[0] is eyes[1]
    count = sum(w.numel() for w in eyes[0].parameters())
    assert sum(w.numel() for w in one.parameters()) - count == sum(
        w.numel() for w in two.parameters()
    )
    assert two.sizes == one.sizes
    text = TWO.replace("[84, 84, 3]", "[96, 84, 3]", 1)
    with pytest.raises(UserError, match="96 x 84 x 3 and .* 84 x 84 x 3 cannot share"):
        DiffusionPolicy(two.recipe, Contract.from_text(text))


def test_a_camera_may_have_an_encoder_of_its_own():
    """image_encoders: key -> settings; a name that is no camera is refused."""
    key = next(k for k, s in Contract.from_text(TWO).observations.items() if s.is_image)
    policy = policy_of(image_encoders=f"{{{key}: {{name: resnet18, crop: 0.5, features: 9}}}}")
    own, other = policy.encoder.image_encoders.values()
    assert own.features == 9 and own.view.size == (42, 42)
    assert other.features == 8
    with pytest.raises(UserError, match="no camera 'frnt'"):
        policy_of(image_encoders="{frnt: {name: small_conv}}")


def test_files_that_are_not_what_they_should_be(tmp_path):
    """Missing, another content, more than tensors, another backbone's: one line each."""
    reference = Reference("resnet18").tensors
    with pytest.raises(UserError, match="no such file.*diffusion-policy weights says which"):
        read_weights(tmp_path / "nothing.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match="cut.pth"):
        read_weights(tmp_path / "cut.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08")
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(tmp_path / "cut.safetensors")
    torch.save({"model": Reference}, tmp_path / "code.pth")
    with pytest.raises(UserError, match="holds more than tensors.*state_dict alone"):
        read_weights(tmp_path / "code.pth")
    torch.save({"step": 3}, tmp_path / "step.pth")
    with pytest.raises(UserError, match="is no state dict"):
        read_weights(tmp_path / "step.pth")
    named = tmp_path / KNOWN["resnet18"][0]
    torch.save(reference, named)
    with pytest.raises(UserError, match="has the SHA-256 .*, not f37072fd"):
        read_weights(named)
    save_file(reference, tmp_path / "r.safetensors")
    digest = hashlib.sha256((tmp_path / "r.safetensors").read_bytes()).hexdigest()
    assert read_weights(tmp_path / "r.safetensors", digest[:20]).keys() == reference.keys()
    with pytest.raises(UserError, match="not 0123"):
        read_weights(tmp_path / "r.safetensors", "0123")
    with pytest.raises(UserError, match="needed|which the file lacks"):
        load_backbone(encoder(name="resnet34").backbone, "resnet34", reference)
    wide = dict(reference, **{"conv1.weight": torch.zeros(64, 5, 7, 7)})
    with pytest.raises(UserError, match=r"'0.weight' is \(64, 5, 7, 7\), needed \(64, 3, 7, 7\)"):
        load_backbone(encoder().backbone, "resnet18", wide)


def test_without_timm_the_error_names_the_extra(monkeypatch):
    """And an unknown backbone the known ones."""
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match=r'pip install "diffusion_policy_ros\[vision\]"'):
        encoder(name="timm/vit_small_patch14_dinov2")
    with pytest.raises(UserError, match="'resnet19' is unknown; did you mean 'resnet18'"):
        Recipe.from_text("policy: {image_encoder: {name: resnet19}}")
    with pytest.raises(UserError, match="resnet18 has no class token"):
        Recipe.from_text("policy: {image_encoder: {pool: cls}}")


def test_a_size_that_a_model_of_timm_refuses_is_said(monkeypatch):
    """Which those are differs from version to version."""

    def create_model(*_, **given):
        assert given["img_size"] == (64, 64), "not a multiple of the patch"

    timm = SimpleNamespace(is_model=lambda _: True, create_model=create_model)
    monkeypatch.setattr(backbones, "import_timm", lambda: timm)
    with pytest.raises(UserError, match="vit does not take 50 x 64: not a multiple"):
        encoder(50, 64, name="timm/vit")


def test_models_of_timm_are_backbones(tmp_path):
    """Patches as maps, the class token, convolutions; weights of another size of pictures."""
    pytest.importorskip("timm")
    name = "timm/vit_tiny_patch16_224"
    for pool, size in (("keypoints", 64), ("mean", 192), ("attention", 192), ("cls", 192)):
        camera = encoder(48, 64, name=name, pool=pool)
        out = camera(torch.randint(0, 256, (1, 2, 48, 64, 3), dtype=torch.uint8))
        assert out.shape == (1, 2, size)
    assert encoder(48, 64, name=name).backbone(torch.zeros(1, 3, 48, 64)).shape == (1, 192, 3, 4)
    larger = encoder(64, 64, name=name, pool="cls")
    state = {n: t.contiguous() for n, t in larger.backbone.model.state_dict().items()}
    save_file(state, tmp_path / "vit.safetensors")
    found = load_backbone(camera.backbone, name, read_weights(tmp_path / "vit.safetensors"))
    assert not found.fresh
    assert encoder(64, 64, name="timm/resnet18", pool="mean").features == 512
    with pytest.raises(UserError, match="resnet18 has no class token"):
        encoder(64, 64, name="timm/resnet18", pool="cls")
    with pytest.raises(UserError, match="timm has no 'vit_tiny_patch16_225'"):
        encoder(64, 64, name="timm/vit_tiny_patch16_225")
