"""OpenVINO against the plain modules: every network, conditioning, target and sampler."""

import signal
import subprocess
import sys

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

pytest.importorskip("openvino", reason="needs openvino: pip install -e '.[openvino]'")

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.engine import (  # noqa: E402
    build_engine,
    compiled,
    openvino as openvino_engine,
)
from diffusion_policy_ros.engine.compiled import capabilities  # noqa: E402
from diffusion_policy_ros.engine.openvino import OpenVinoEngine  # noqa: E402
from diffusion_policy_ros.errors import UserError  # noqa: E402
from diffusion_policy_ros.policy.checkpoint import save_checkpoint  # noqa: E402
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy  # noqa: E402
from diffusion_policy_ros.policy.following import Follow  # noqa: E402
from diffusion_policy_ros.policy.recipe import Recipe  # noqa: E402
from diffusion_policy_ros.policy.samplers import SAMPLERS  # noqa: E402

pytestmark = pytest.mark.compiles


def test_a_robots_computer_tells_nobody_that_it_converts():
    """OpenVINO's telemetry is what it is where that package is not installed."""
    code = (
        "import sys, diffusion_policy_ros.engine.openvino\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "print(telemetry_utils.tm.__name__, sys.modules['openvino_telemetry'])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "None"]


CPU = torch.device("cpu")
NETWORKS = {
    "unet1d": "{name: unet1d, down_dims: [16, 32], n_groups: 4}",
    "transformer": "{name: transformer, n_layer: 1, n_emb: 32}",
    "mlp": "{name: mlp, hidden_size: 32, num_layers: 2}",
}
CASES = [
    ("unet1d", "global"),
    ("unet1d", "local"),
    ("unet1d", "inpainting"),
    ("transformer", "tokens"),
    ("transformer", "global"),
    ("transformer", "inpainting"),
    ("mlp", "global"),
    ("mlp", "inpainting"),
]


@pytest.fixture(autouse=True, scope="module")
def once():
    """The same network is converted once for all tests, known by what a checkpoint is known by."""
    kept, convert = {}, openvino_engine._converted

    def converted(policy, dtype):
        weights = b"".join(w.numpy().tobytes() for w in policy.state_dict().values())
        key = policy.recipe.to_text(), policy.contract.text, weights, dtype
        if key not in kept:
            kept[key] = convert(policy, dtype)
        return {name: model.clone() for name, model in kept[key].items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_engine, "_converted", converted)
        yield


SMALL_CONV = "{name: small_conv, keypoints: 4, features: 0}"


def make(network="unet1d", name="mini_lift_state", encoder=SMALL_CONV, **policy):
    """An untrained policy whose output layers are not zero."""
    changes = {"policy.denoiser": NETWORKS[network], "training.batch_shares": "1"}
    changes["policy.actions"] = "recorded"
    changes |= {f"policy.{key}": str(value) for key, value in policy.items()}
    if name == "mini_lift":
        changes["policy.image_encoder"] = encoder
    torch.manual_seed(0)
    made = DiffusionPolicy(Recipe.load(name, changes), Contract.load(name)).eval()
    for weight in made.denoiser.parameters():
        torch.nn.init.normal_(weight, std=0.2) if not weight.any() else None
    return made


def window(policy, seed=0, batch=1):
    """A window of random observations."""
    random = torch.Generator().manual_seed(seed)
    steps = policy.recipe.policy.n_obs_steps
    return {
        key: torch.randint(0, 256, (batch, steps, *stream.shape), generator=random).byte()
        if stream.is_image
        else torch.randn(batch, steps, *stream.shape, generator=random)
        for key, stream in policy.contract.observations.items()
    }


def relative_error(engine, policy, batch=1, **options):
    """Of what the engine samples from the same noise."""
    shape = (batch, policy.recipe.policy.predicted_steps, policy.sizes.action_dim)
    options["noise"] = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    options["generator"] = torch.Generator().manual_seed(2)
    seen = window(policy, batch=batch)
    expected = policy.sample(seen, **options)
    options["generator"] = torch.Generator().manual_seed(2)
    return float((engine.sample(seen, **options) - expected).norm() / expected.norm())


@pytest.mark.parametrize(("network", "conditioning"), CASES)
def test_every_network_told_in_every_way(network, conditioning):
    """The same chunk within 1e-4, for every sampler, and for several windows at once."""
    policy = make(network, conditioning=conditioning)
    engine = OpenVinoEngine(policy, CPU)
    for sampler in SAMPLERS:
        assert relative_error(engine, policy, steps=4, sampler=sampler) < 1e-4, sampler
    assert relative_error(engine, policy, batch=3, steps=2) < 1e-4


@pytest.mark.parametrize(
    "settings",
    [
        {"prediction_type": "epsilon", "observation_dropout": 0.1},
        {
            "prediction_type": "v",
            "timestep_spacing": "leading",
            "pred_action_steps_only": "true",
            "temporal_encoder": "{hidden_size: 16}",
        },
    ],
)
def test_every_setting_of_the_policy(settings):
    """Targets, fewer predicted steps, an encoder of the window, guidance."""
    policy = make("mlp", **settings)
    guidance = 2.0 if "observation_dropout" in settings else 1.0
    engine = OpenVinoEngine(policy, CPU)
    assert relative_error(engine, policy, steps=3, guidance=guidance) < 1e-4


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("network", ["unet1d", "mlp"])
def test_threads(network, threads):
    """One as on a robot that needs its other cores; OpenVINO compiles otherwise then."""
    before = torch.get_num_threads()
    policy = make(network, conditioning="global")
    try:
        engine = build_engine(policy, "openvino", threads=threads)
        assert engine.threads == threads
        assert relative_error(engine, policy, steps=2) < 1e-4
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("view", ["", ", resize: [44, 40], crop: 0.8, shared: true"])
def test_frames_are_encoded_once(view):
    """A window that slides has one new frame, and its chunk is the plain policy's."""
    policy = make("mlp", name="mini_lift", encoder=SMALL_CONV[:-1] + view + "}")
    engine = OpenVinoEngine(policy, CPU)
    first, second = window(policy, 0), window(policy, 1)
    slid = {key: torch.cat([first[key][:, 1:], second[key][:, :1]], 1) for key in first}
    noise = torch.randn(1, 16, 7, generator=torch.Generator().manual_seed(1))
    for seen in (first, slid, second, slid):
        expected = policy.sample(seen, noise=noise)
        torch.testing.assert_close(engine.sample(seen, noise=noise), expected, rtol=0, atol=1e-4)


def test_a_picture_in_the_memory_of_the_last_is_another():
    """A caller may fill the same arrays anew; the features were those of the picture before."""
    policy = make("mlp", name="mini_lift")
    engine = OpenVinoEngine(policy, CPU)
    noise = torch.randn(1, 16, 7, generator=torch.Generator().manual_seed(1))
    memory = {key: value.numpy() for key, value in window(policy, 0).items()}
    for seed in (1, 2):
        for key, value in window(policy, seed).items():
            memory[key][:] = value
        expected = policy.sample(memory, noise=noise)
        torch.testing.assert_close(engine.sample(memory, noise=noise), expected, rtol=0, atol=1e-4)


def test_the_encoder_of_the_recommended_recipe():
    """ResNet-18: it once ended the process while it was compiled."""
    policy = make("mlp", name="mini_lift", encoder="{name: resnet18, crop: [76, 76]}")
    assert relative_error(OpenVinoEngine(policy, CPU), policy, steps=2) < 1e-4


@pytest.mark.parametrize("kind", ["rtc", "rtc_cheap", "inpaint"])
def test_a_chunk_that_follows_another(kind):
    """With the derivative the plain modules compute; without it the compiled ones."""
    policy = make("mlp")
    follow = Follow(torch.zeros(1, 16, 7), torch.linspace(1, 0, 16), kind)
    assert relative_error(OpenVinoEngine(policy, CPU), policy, steps=2, follow=follow) < 1e-4


@pytest.mark.parametrize(
    "denoiser",
    [
        "{name: unet1d, down_dims: [64], n_groups: 8}",
        "{name: transformer, n_layer: 1, n_emb: 128}",
    ],
)
def test_weights_in_8_bits_are_near(denoiser):
    """Rounded weights: near, and not the same."""
    policy = make(denoiser=denoiser)
    assert 0 < relative_error(OpenVinoEngine(policy, CPU, "int8"), policy, steps=3) < 0.05


def test_networks_are_kept_beside_the_checkpoint(tmp_path, monkeypatch):
    """The second start converts nothing; a damaged file is made anew, and said once."""
    policy, said = make("mlp"), []
    folder = save_checkpoint(tmp_path / "policy", policy)
    OpenVinoEngine(policy, CPU, checkpoint=folder, say=said.append)
    module = "diffusion_policy_ros.engine.openvino._converted"
    with monkeypatch.context() as patch:
        patch.setattr(module, lambda *_: pytest.fail("it was converted once more"))
        engine = OpenVinoEngine(policy, CPU, checkpoint=folder, say=said.append)
    assert len(said) == 1 and relative_error(engine, policy, steps=2) < 1e-4
    weights = max((folder / "compiled").rglob("*.bin"), key=lambda path: path.stat().st_size)
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    engine = OpenVinoEngine(policy, CPU, checkpoint=folder, say=said.append)
    assert len(said) == 2 and "is damaged" in said[1] and "\n" not in said[1]
    assert relative_error(engine, policy, steps=2) < 1e-4


def test_what_cannot_be_is_refused(monkeypatch):
    """Another precision or device, and a machine without openvino, in one line each."""
    policy = make()
    known = ", ".join(sorted(capabilities()))  # the processor's own
    with pytest.raises(UserError, match=f"use one of: {known}$"):
        build_engine(policy, "openvino", dtype="f8")
    with pytest.raises(UserError, match="computes on the cpu"):
        OpenVinoEngine(policy, torch.device("cuda"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="openvino is not installed; pip install openvino"):
        build_engine(policy, "openvino")


@pytest.mark.parametrize("kernel", [3, 5])
def test_large_convolutions_become_products(monkeypatch, kernel):
    """The same chunk; only the largest networks have layers of that size by themselves."""
    denoiser = f"{{name: unet1d, down_dims: [16], n_groups: 4, kernel_size: {kernel}}}"
    policy = make(denoiser=denoiser)
    monkeypatch.setattr("diffusion_policy_ros.engine.weights.LARGEST", 1)
    assert relative_error(OpenVinoEngine(policy, CPU), policy, steps=3) < 1e-4


def test_what_the_network_sees_is_not_compiled():
    """With relative actions and 6-D orientations, the same as eager's; -q is q, bit for bit."""
    policy = make("mlp", actions="relative", orientation="rotation_6d")
    engine = OpenVinoEngine(policy, CPU)
    assert relative_error(engine, policy, steps=3) < 1e-4
    noise = torch.randn(1, 16, policy.sizes.action_dim)
    seen = window(policy)
    flipped = {key: -value if key.endswith("quat") else value for key, value in seen.items()}
    ours, theirs = (engine.sample(told, noise=noise) for told in (seen, flipped))
    assert torch.equal(ours, theirs) and ours.shape[-1] == policy.contract.action_dim


def test_a_ctrl_c_while_networks_are_converted_is_a_ctrl_c(monkeypatch):
    """Raised where C++ calls Python back, it would end the process."""

    class Decoder(compiled.TorchFXPythonDecoder):
        def visit_subgraph(self, visitor):
            signal.raise_signal(signal.SIGINT)
            super().visit_subgraph(visitor)

    monkeypatch.setattr(compiled, "TorchFXPythonDecoder", Decoder)
    network = make_fx(torch.relu, tracing_mode="fake")(torch.zeros(2, 4))
    with pytest.raises(KeyboardInterrupt):
        compiled.convert(network)
