"""CUDA graphs: what is around them on any machine, and they themselves where there is a GPU."""

import threading

import pytest
import torch

from diffusion_policy_ros.bench.speed import Speed, Start
from diffusion_policy_ros.bench.verdict import Demand, Timing
from diffusion_policy_ros.cli import bench
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.engine import build_engine, cuda_graph
from diffusion_policy_ros.engine.cuda_graph import CudaGraphEngine
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.following import Follow
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.policy.samplers import SAMPLERS
from diffusion_policy_ros.runtime.inference import warm_up
from diffusion_policy_ros.runtime.sampling import Sampling

CPU = torch.device("cpu")
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
DENOISERS = {
    "unet1d": "{name: unet1d, down_dims: [16, 32], n_groups: 4}",
    "transformer": "{name: transformer, n_layer: 2, n_emb: 32}",
    "mlp": "{name: mlp, hidden_size: 32, num_layers: 2}",
}
CASES = [
    ("unet1d", "local"),
    ("unet1d", "inpainting"),
    ("transformer", "tokens"),
    ("mlp", "global"),
]


@pytest.fixture(autouse=True)
def one_thread():
    """Of each computation: two that compute beside each other wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(network="unet1d", conditioning="global", name="mini_lift_state", **settings):
    """An untrained policy whose output layers are not zero."""
    changes = {
        "policy.denoiser": DENOISERS[network],
        "policy.conditioning": conditioning,
        "policy.eta": "0.5",
        "policy.observation_dropout": "0.1",
        "training.batch_shares": "1",
        "policy.actions": "recorded",
    }
    if name == "mini_lift":
        changes["policy.image_encoder"] = "{name: small_conv, keypoints: 4, features: 8}"
    if conditioning == "inpainting":
        del changes["policy.observation_dropout"]
    torch.manual_seed(0)
    made = DiffusionPolicy(Recipe.load(name, changes | settings), Contract.load(name)).eval()
    for weight in made.denoiser.parameters():
        torch.nn.init.normal_(weight, std=0.2) if not weight.any() else None
    return made


def window(policy, seed, batch=1):
    """Random observations."""
    random = torch.Generator().manual_seed(seed)
    return {
        key: torch.randint(0, 256, (batch, 2, *stream.shape), generator=random).byte()
        if stream.is_image
        else torch.randn(batch, 2, *stream.shape, generator=random)
        for key, stream in policy.contract.observations.items()
    }


def errors(engine, policy, calls=3, noise=None, batch=1, **how):
    """Largest difference of each of some chunks in a row, which share a source of noise.

    All but the first are a graph's, if there can be one.
    """
    ours, theirs = (torch.Generator().manual_seed(7) for _ in range(2))
    found = []
    for seed in range(calls):
        seen = window(policy, seed, batch)
        out = engine.sample(seen, generator=ours, noise=noise, **how)
        getattr(engine, "settle", lambda: None)()
        expected = policy.sample(seen, generator=theirs, noise=noise, **how)
        found.append(float((out - expected).abs().max() / expected.abs().max()))
    return found


@pytest.fixture
def recorded(monkeypatch):
    """A stand-in for the GPU's graphs: does it again, into the same memory; the runs captured."""
    runs = []

    def record(run):
        out = run()
        runs.append(run)

        def replay():
            out.copy_(run())
            return out

        return torch.inference_mode()(replay)

    monkeypatch.setattr(cuda_graph, "record", record)
    yield runs
    for thread in threading.enumerate():
        if thread.name == "capture":
            thread.join(60)


@pytest.mark.parametrize(("network", "conditioning"), CASES)
def test_a_replay_has_the_same_observation_and_noise(recorded, network, conditioning):
    """The chunks of one seed are eager's, for every sampler, each captured once.

    And the denoiser once, for all.
    """
    policy = make(network, conditioning)
    engine = CudaGraphEngine(policy, CPU)
    for sampler in SAMPLERS:
        assert max(errors(engine, policy, steps=4, sampler=sampler)) < 1e-6, sampler
    assert len(recorded) == 1 + len(SAMPLERS)
    assert max(errors(engine, policy, steps=4, sampler="ddim")) < 1e-6
    assert len(recorded) == 1 + len(SAMPLERS)


def test_another_way_of_calling_is_another_graph(recorded):
    """Steps, guidance, batch and a start that is given; those used before are kept."""
    policy, noise = make(), torch.ones(1, 16, 7)
    engine = CudaGraphEngine(policy, CPU)
    ways = [{"steps": 2}, {"steps": 3}, {"guidance": 2.0}, {"batch": 2}, {"noise": noise}]
    for how in [*ways, *ways]:
        assert max(errors(engine, policy, **how)) < 1e-6, how
    assert len(recorded) == len(ways) + len({"the denoiser", "of two windows"})


@pytest.mark.parametrize("actions", ["absolute", "relative"])
def test_what_the_network_sees_is_captured_and_the_robot_gets_its_own(recorded, actions):
    """The way to the network and back is outside of the graph: a new window is a new pose."""
    policy = make(**{"policy.actions": actions, "policy.orientation": "rotation_6d"})
    assert policy.frames.changes_actions
    engine = CudaGraphEngine(policy, CPU)
    assert max(errors(engine, policy)) < 1e-6
    assert len(recorded) == 1 + len({"the chunk"})


def test_a_chunk_does_not_change_with_the_next(recorded):
    """What was handed over is the caller's; the graph's own memory is written again."""
    policy = make()
    engine = CudaGraphEngine(policy, CPU)
    engine.sample(window(policy, 0), steps=2)
    chunks = [engine.sample(window(policy, seed), steps=2) for seed in (0, 1)]
    before = chunks[1].clone()
    engine.sample(window(policy, 2), steps=2)
    torch.testing.assert_close(chunks[1], before, rtol=0, atol=0)


def test_graphs_do_not_pile_up(recorded, monkeypatch):
    """Somebody who turns at the guidance does not fill the GPU."""
    monkeypatch.setattr(cuda_graph, "MOST", 2)
    policy = make()
    engine = CudaGraphEngine(policy, CPU)
    for guidance in (2.0, 3.0, 4.0, 2.0):
        assert max(errors(engine, policy, steps=2, guidance=guidance)) < 1e-6
    assert len(recorded) == 4 + len({"the denoiser, told and untold"}) and len(engine._graphs) == 2


@pytest.fixture
def slow_capture(monkeypatch, recorded):
    """A stand-in that waits: the number of captures that it lets through is the semaphore's."""
    gate, record = threading.Semaphore(2), cuda_graph.record  # denoiser and chunk of the first

    def wait_and_record(run):
        assert gate.acquire(timeout=60)
        return record(run)

    monkeypatch.setattr(cuda_graph, "record", wait_and_record)
    yield gate
    gate.release(100)


@pytest.mark.parametrize(("network", "conditioning"), [*CASES, ("unet1d", "global")])
def test_another_number_of_steps_is_captured_beside(slow_capture, network, conditioning):
    """Meanwhile each chunk has the steps that were asked for, by the denoiser's graph."""
    policy = make(network, conditioning)
    engine = CudaGraphEngine(policy, CPU)
    kept = engine.sample(window(policy, 0), steps=4)
    assert kept is not None and len(engine._graphs) == 1
    replayed = count_replays(engine)
    for steps in (2, 5, 4, 2):
        ours, theirs = (torch.Generator().manual_seed(steps) for _ in range(2))
        seen = window(policy, steps)
        out = engine.sample(seen, generator=ours, steps=steps)
        expected = policy.sample(seen, generator=theirs, steps=steps)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert len(engine._graphs) == 1, "none is done yet"
    assert len(replayed) == 2 + 5 + 2, "and none of theirs is eager"
    slow_capture.release(2)
    engine.settle()
    assert len(engine._graphs) == 2, "the first that was asked for"
    engine.sample(window(policy, 0), steps=2)
    assert len(replayed) == 2 + 5 + 2, "its own graph has all steps"
    engine.sample(window(policy, 0), steps=5)
    engine.settle()
    assert len(engine._graphs) == 3, "the other, when it was asked for again"


def count_replays(engine):
    """What the denoiser's graphs have been replayed for, from now on."""
    replayed, graphs = [], engine._steps.graphs
    for size, (places, replay) in graphs.items():
        graphs[size] = places, lambda replay=replay: (replayed.append(1), replay())[1]
    return replayed


def test_mistakes_while_another_is_captured_are_the_policys_own(slow_capture):
    """A number of steps that there is not is refused, whatever is in the making."""
    policy = make()
    engine = CudaGraphEngine(policy, CPU)
    for steps in (4, 3):
        engine.sample(window(policy, 0), steps=steps)
    for steps in (0, 1000):
        with pytest.raises(UserError, match="use 1 to"):
            engine.sample(window(policy, 0), steps=steps)
    assert len(engine._graphs) == 1


def test_what_fails_beside_is_said_and_computed_plainly(recorded, monkeypatch):
    """The thread dies of nothing, and what had a graph keeps it."""
    policy, said = make(), []
    engine = CudaGraphEngine(policy, CPU, say=said.append)
    assert max(errors(engine, policy, steps=4)) < 1e-6
    for error in (torch.cuda.OutOfMemoryError("CUDA out of memory"), KeyError("a bug of ours")):

        def fail(run, error=error):
            raise error

        monkeypatch.setattr(cuda_graph, "record", fail)
        steps = 2 + len(said)
        assert max(errors(engine, policy, steps=steps)) < 1e-6
        assert max(errors(engine, policy, steps=4)) < 1e-6
    assert said == [
        "engine cuda_graph: cannot capture (CUDA out of memory); the plain modules compute, in f32"
    ]
    assert [graph is None for graph in engine._graphs.values()] == [True, True, False]


def test_warming_up_waits_for_the_graph(slow_capture):
    """What is measured or runs after it has its graph."""
    policy = make()
    engine = CudaGraphEngine(policy, CPU)
    warm_up(engine, Sampling.of(policy.recipe.policy, num_inference_steps=4))
    slow_capture.release()
    warm_up(engine, Sampling.of(policy.recipe.policy, num_inference_steps=2))
    assert len(engine._graphs) == 2


def test_a_chunk_that_follows_another_is_computed_plainly(recorded):
    """With a derivative or not."""
    policy = make()
    engine = CudaGraphEngine(policy, CPU)
    for kind in ("rtc", "inpaint"):
        follow = Follow(torch.zeros(1, 16, 7), torch.linspace(1, 0, 16), kind)
        assert max(errors(engine, policy, steps=2, follow=follow)) < 1e-6
    assert not recorded


def test_what_cannot_be_captured_is_computed_plainly_and_said_once(monkeypatch):
    """Out of memory, an operation that no graph can hold: the chunks are eager's."""

    def full(run):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory\nand more")

    monkeypatch.setattr(cuda_graph, "record", full)
    policy, said = make(), []
    engine = CudaGraphEngine(policy, CPU, say=said.append)
    assert max(errors(engine, policy, steps=2) + errors(engine, policy, steps=3)) == 0
    [line] = said
    assert "cannot capture (CUDA out of memory); the plain modules compute" in line


def test_mistakes_are_the_policys_own(recorded):
    """Before and after a capture, another shape is refused as ever."""
    policy = make()
    engine = CudaGraphEngine(policy, CPU)
    for _ in range(2):
        with pytest.raises(UserError, match="give all of"):
            engine.sample({})
        with pytest.raises(UserError, match="use 1 to"):
            engine.sample(window(policy, 0), steps=0)
        with pytest.raises(UserError, match="noise"):
            engine.sample(window(policy, 0), noise=torch.zeros(1, 1, 7))
        assert max(errors(engine, policy)) < 1e-6


def test_lower_precision_is_near(recorded):
    """Products in bfloat16; what the sampler and the normaliser compute stays float32."""
    policy = make(name="mini_lift")
    engine = CudaGraphEngine(policy, CPU, "bf16")
    first, *later = errors(engine, policy, steps=4)
    assert first == 0 and all(0 < error < 0.05 for error in later)
    another_number = errors(engine, policy, steps=5)
    assert all(0 < error < 0.05 for error in another_number), "captured beside, no less precise"
    assert next(iter(policy.denoiser.parameters())).dtype == torch.float32
    assert engine.sample(window(policy, 9), steps=4).dtype == torch.float32


def test_without_a_gpu_the_eager_engine_computes():
    """Said once, and an unknown precision is refused all the same."""
    policy, said = make(), []
    engine = build_engine(policy, "cuda_graph", "cpu", "bf16", say=said.append)
    assert engine.name == "eager" and max(errors(engine, policy)) == 0
    [line] = said
    assert "needs a GPU" in line and "\n" not in line
    with pytest.raises(UserError, match="dtype: unknown precision 'f8'"):
        build_engine(policy, "cuda_graph", "cpu", "f8")


def test_bench_calls_it_experimental():
    """Beside its figures; those of other engines stand without."""
    demand = Demand(10.0, 4, 8, "ddim", 10)
    for engine, noted in (("cuda_graph", True), ("eager", False)):
        start = Start(engine, "f32", "cpu", 1, 0.1, None, 0.1, 10.0, None)
        measured = Speed(start, (Timing(engine, "f32", "ddim", 10, 3, 1.0, 1.0, 1.0),))
        lines = "\n".join(bench.describe([measured], [], demand))
        assert (f"note      {engine} is experimental" in lines) == noted


class TestOnAGpu:
    """Graphs themselves."""

    pytestmark = GPU

    @pytest.mark.parametrize(("network", "conditioning"), CASES)
    def test_the_same_chunk(self, network, conditioning):
        """Every sampler, captured without a word, within 1e-4 of eager on the CPU."""
        policy, said = make(network, conditioning), []
        reference = make(network, conditioning)
        engine = build_engine(policy, "cuda_graph", "cuda", say=said.append)
        for sampler in SAMPLERS:
            ours = [engine.sample(window(policy, seed), **self.how(sampler)) for seed in (0, 1)]
            for seed, out in enumerate(ours):
                expected = reference.sample(window(policy, seed), **self.how(sampler))
                torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=1e-4)
        assert not said

    @pytest.mark.parametrize("dtype", ["tf32", "bf16", "fp16"])
    def test_lower_precision_with_cameras(self, dtype):
        """Near, and captured without a word."""
        policy, reference, said = make(name="mini_lift"), make(name="mini_lift"), []
        engine = build_engine(policy, "cuda_graph", "cuda", dtype, say=said.append)
        for seed in (0, 1, 2):
            out = engine.sample(window(policy, seed), **self.how("ddim"))
            expected = reference.sample(window(policy, seed), **self.how("ddim"))
            assert (out.cpu() - expected).norm() < 0.05 * expected.norm()
        assert not said

    def test_another_number_of_steps_while_chunks_go_on(self):
        """Captured beside, without a word; each chunk has the steps that were asked for."""
        policy, reference, said = make(), make(), []
        engine = build_engine(policy, "cuda_graph", "cuda", say=said.append)
        for steps in (4, *[2] * 50, *[5] * 50, 4):
            seen = window(policy, steps)
            out = engine.sample(seen, **self.how("ddim", steps))
            expected = reference.sample(seen, **self.how("ddim", steps))
            torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=1e-4)
        engine.settle()
        assert not said and None not in engine._graphs.values()

    def test_a_capture_that_fails_leaves_the_gpu_usable(self, monkeypatch):
        """Said, computed plainly; another way of calling is captured afterwards."""
        policy, said = make(), []
        engine = build_engine(policy, "cuda_graph", "cuda", say=said.append)
        capture = cuda_graph.record

        def fails_within(run):
            calls = iter(range(4))

            def fourth_time_out_of_memory():
                if next(calls) == 3:
                    torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
                return run()

            return capture(fourth_time_out_of_memory)

        with monkeypatch.context() as patched:
            patched.setattr(cuda_graph, "record", fails_within)
            engine.sample(window(policy, 0), **self.how("ddim"))
        assert len(said) == 1 and "out of memory" in said[0]
        assert [graph is None for graph in engine._graphs.values()] == [True]
        for seed in (1, 2):
            out = engine.sample(window(policy, seed), **self.how("ddpm"))
            engine.settle()
            expected = make().sample(window(policy, seed), **self.how("ddpm"))
            torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=1e-4)
        assert any(graph is not None for graph in engine._graphs.values())

    def how(self, sampler, steps=4):
        """Arguments, with the same noise each time."""
        return {"sampler": sampler, "steps": steps, "generator": torch.Generator().manual_seed(1)}
