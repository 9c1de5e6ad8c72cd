"""What can be wrong with an engine's settings, its machine and what it keeps."""

import shutil

import pytest
import torch

openvino = pytest.importorskip("openvino", reason="needs openvino: pip install -e '.[openvino]'")

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.engine import build_engine  # noqa: E402
from diffusion_policy_ros.errors import UserError  # noqa: E402
from diffusion_policy_ros.policy.checkpoint import load_policy, save_checkpoint  # noqa: E402
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy  # noqa: E402
from diffusion_policy_ros.policy.recipe import Recipe  # noqa: E402
from diffusion_policy_ros.runtime.inference import warm_up  # noqa: E402
from diffusion_policy_ros.runtime.sampling import Sampling  # noqa: E402

pytestmark = pytest.mark.compiles
SMALL = {"policy.denoiser": "{name: mlp, hidden_size: 8, num_layers: 1}"}
NOISE = torch.randn(1, 16, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A checkpoint with its compiled networks beside it."""
    torch.manual_seed(0)
    recipe = Recipe.load("mini_lift_state", SMALL)
    made = DiffusionPolicy(recipe, Contract.load("mini_lift_state"))
    folder = save_checkpoint(tmp_path_factory.mktemp("kept") / "policy", made)
    start(folder)
    return folder


@pytest.fixture
def checkpoint(kept, tmp_path):
    """A copy of it that may be damaged."""
    return shutil.copytree(kept, tmp_path / "policy")


@pytest.fixture
def converted(kept, monkeypatch):
    """Making networks anew takes no time."""
    [folder] = (kept / "compiled").iterdir()

    def read(*_):
        halves = ("early", "late")
        return {half: openvino.Core().read_model(folder / f"{half}.xml") for half in halves}

    monkeypatch.setattr("diffusion_policy_ros.engine.openvino._converted", read)


@pytest.fixture
def quick(converted, monkeypatch):
    """Nor does trying them."""
    monkeypatch.setattr("diffusion_policy_ros.engine.compiled._try", lambda *_: 1)


def start(folder, **options):
    """Start the engine as the node does, and check that it samples; what was said."""
    said = []
    policy = load_policy(folder)
    options = {"name": "openvino", "device": "cpu", "checkpoint": folder} | options
    engine = build_engine(policy, say=said.append, **options)
    window = {
        key: torch.ones(1, 2, *stream.shape)
        for key, stream in policy.contract.observations.items()
    }
    chunk = engine.sample(window, noise=NOISE, steps=2)
    expected = policy.sample(window, noise=NOISE, steps=2)
    torch.testing.assert_close(chunk, expected, rtol=0, atol=1e-4)
    assert not any("\n" in line for line in said)
    return said


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"name": "openvimo"}, "engine: unknown engine 'openvimo'; did you mean 'openvino'?"),
        ({"name": "warp"}, "engine: unknown engine 'warp'; use one of: auto, eager, openvino"),
        ({"dtype": "f8"}, "dtype: unknown precision 'f8'; use one of: "),
        ({"name": "eager", "dtype": "int8"}, "dtype: int8; the eager engine computes in f32"),
        ({"device": "warp9"}, "device: no device 'warp9' here; use auto or cpu"),
        ({"device": "cuda:99"}, "device: no device 'cuda:99' here; use auto or cpu"),
        ({"threads": -1}, "threads: -1 threads; give 1 or more"),
    ],
)
def test_what_is_not_there_is_one_line_with_the_cure(kept, options, line):
    """A slip of the pen, a precision that the processor lacks, a GPU where there is none."""
    with pytest.raises(UserError) as raised:
        start(kept, **options)
    assert str(raised.value).startswith(line) and "\n" not in str(raised.value)


def test_what_was_kept_is_used(checkpoint, monkeypatch):
    """And nothing is said of it."""
    monkeypatch.setattr(
        "diffusion_policy_ros.engine.openvino._converted", lambda *_: pytest.fail("made anew")
    )
    assert start(checkpoint) == []


def change(content):
    """A disk that forgets a bit."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "flipped": lambda file: file.write_bytes(change(file.read_bytes())),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-8]),
    "emptied": lambda file: file.write_bytes(b""),
    "lost": lambda file: file.unlink(),
    "other json": lambda file: file.write_text("[1, 2]"),
    "names nothing": lambda file: file.write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["late.bin", "early.xml", "manifest.json"])
def test_a_damaged_cache_is_made_anew_and_said_once(checkpoint, quick, name, damage):
    """Whatever happened to whichever file; the next start finds it mended."""
    [folder] = (checkpoint / "compiled").iterdir()
    DAMAGES[damage](folder / name)
    [line] = start(checkpoint)
    assert str(folder) in line and "is damaged" in line and "it is made anew" in line
    assert start(checkpoint) == []


def test_a_cache_that_was_emptied_is_made_anew(checkpoint, quick):
    """Also where the manifest agrees that there is nothing."""
    [folder] = (checkpoint / "compiled").iterdir()
    for file in folder.iterdir():
        file.unlink()
    (folder / "manifest.json").write_text("{}")
    assert len(start(checkpoint)) == 1
    shutil.rmtree(checkpoint / "compiled")
    [line] = start(checkpoint)
    assert "once; wait" in line and any((checkpoint / "compiled").iterdir())


def test_a_folder_that_cannot_be_written_is_done_without(checkpoint, quick):
    """As root may write everywhere, a file stands where the folder should be."""
    shutil.rmtree(checkpoint / "compiled")
    (checkpoint / "compiled").write_text("in the way")
    _, line = start(checkpoint)
    assert "cannot be written" in line and "goes on without" in line
    assert (checkpoint / "compiled").read_text() == "in the way"


def test_a_network_that_cannot_be_compiled_is_one_line(kept, monkeypatch):
    """And the line says what runs every policy."""

    def cannot(*_):
        raise NotImplementedError("a network that uses its timestep as it is\nand more")

    monkeypatch.setattr("diffusion_policy_ros.engine.openvino.split", cannot)
    with pytest.raises(UserError) as raised:
        start(kept, checkpoint=None)
    assert "uses its timestep as it is); use engine eager" in str(raised.value)
    assert "and more" not in str(raised.value)


def test_a_gpu_without_memory_is_one_line(kept, monkeypatch):
    """Torch's own error, at the time when the policy is moved there."""

    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")

    policy = load_policy(kept)
    monkeypatch.setattr(DiffusionPolicy, "to", full)
    with pytest.raises(UserError, match="engine eager: .*out of memory.*; use .* device cpu"):
        build_engine(policy, "eager")


def test_a_gpu_that_is_full_at_the_first_chunk_is_one_line(kept, monkeypatch):
    """The weights had room, what is computed has not."""

    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB\nand more")

    engine = build_engine(load_policy(kept), "eager")
    monkeypatch.setattr(DiffusionPolicy, "sample", full)
    with pytest.raises(UserError, match="engine eager: .* 20 MiB; end what else uses the GPU"):
        warm_up(engine, Sampling.of(engine.policy.recipe.policy))


def test_a_compiler_that_crashes_does_not_end_the_process(
    checkpoint, converted, monkeypatch, tmp_path
):
    """It is tried in a process of its own first; nothing is kept, and auto goes on with eager."""
    shutil.rmtree(checkpoint / "compiled")
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -SEGV $$\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(UserError, match="OpenVINO fails on this network: exit status -11"):
        start(checkpoint)
    assert not any((checkpoint / "compiled").iterdir())
    _, line = start(checkpoint, name="auto")
    assert line.startswith(
        "engine auto takes eager: engine openvino: cannot run this policy on cpu"
    )


def test_auto_is_openvino_and_else_eager(checkpoint, monkeypatch):
    """And says how to get it."""
    assert build_engine(load_policy(checkpoint), checkpoint=checkpoint).name == "openvino"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    [line] = start(checkpoint, name="auto")
    assert "openvino is not installed; pip install openvino" in line
    with pytest.raises(UserError, match="not installed"):
        start(checkpoint, name="auto", dtype="int8")
