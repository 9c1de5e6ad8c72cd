"""The protocol: a simulator of the user's own, with joints and at 10 Hz, is a robot like ours."""

import csv
import json
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from toy import install

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import open_bag
from diffusion_policy_ros.data.convert import convert
from diffusion_policy_ros.demonstrations import record_demonstrations
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.evaluation import ClosedLoop, evaluate, make_simulator
from diffusion_policy_ros.observe.codecs import decode, stamp_ns
from diffusion_policy_ros.runtime.sampling import Sampling
from diffusion_policy_ros.sim import simulator
from diffusion_policy_ros.simulated_robot import SimulatedRobot

TOY = "toy/reach"
SAMPLING = Sampling(num_inference_steps=1, sampler="ddim", replan_steps=1, n_action_steps=8)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The how-to's package, installed; its contract's path."""
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield install(folder)
        sys.modules.pop("toy_arm", None)


@pytest.fixture(scope="module")
def contract(toy):
    """The how-to's."""
    return Contract.load(toy)


class Reaching:
    """Stands in for a policy: joints that go to the lamp."""

    def sample(self, observation, **_):
        here, lamp = observation["joints"][0, -1], observation["lamp"][0, -1]
        way = np.clip(lamp - here, -0.1, 0.1)
        return torch.from_numpy((here + way * np.arange(16)[:, None])[None].astype(np.float32))


def test_it_is_evaluated_at_its_own_rate(contract):
    """Chunks of joints, a step every 100 ms, an end that it says itself."""
    with make_simulator(TOY, contract) as robot:
        loop = ClosedLoop(Reaching(), contract, 2, SAMPLING)
        result = evaluate(robot, loop, range(10_000, 10_005))
    assert all(episode.success for episode in result.episodes)
    assert all(e.seconds == pytest.approx(e.steps / 10) for e in result.episodes)


def test_its_expert_is_recorded_in_the_robots_units(contract, tmp_path):
    """The driver takes degrees: they are in the bag, and the contract undoes them."""
    (bag,) = record_demonstrations(contract, tmp_path, 1, sim=TOY).bags
    command = contract.action.commands[0]
    heard = {}
    for topic, _, message in open_bag(bag).messages():
        heard.setdefault(topic, []).append(message)
    stamps = [stamp_ns(message) for message in heard["/joint_states"]]
    assert set(np.diff(stamps)) == {100_000_000}
    joints = decode(contract.observations["joints"], heard["/joint_states"][0])
    lamp = decode(contract.observations["lamp"], heard["/lamp"][0])
    told = decode(command, heard["/joint_command"][0])
    np.testing.assert_allclose(told, joints + np.clip(lamp - joints, -0.1, 0.1), atol=1e-6)
    raw = heard["/joint_command"][0].points[0].positions
    np.testing.assert_allclose(raw, np.rad2deg(told), rtol=1e-5)


def test_the_whole_way_without_ros(toy, contract, tmp_path, capsys):
    """Recorded, converted, trained for a moment, driven meanwhile, evaluated by command."""
    record_demonstrations(contract, tmp_path / "bags", 3, sim=TOY)
    convert([tmp_path / "bags"], contract, tmp_path / "dataset")
    words = ["train", "--dataset", str(tmp_path / "dataset"), "--config", "small_state"]
    words += ["--out", str(tmp_path / "run"), "training.updates=4", "training.batch_size=8"]
    words += ["training.metric=success", "training.eval_every=3", "training.eval_episodes=2"]
    assert main([*words, "training.keep_best=1", "training.eval_sim=mini_lift"]) == 2
    assert "mini_lift is told positions, not joints" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*words, "training.keep_best=1", f"training.eval_sim={TOY}"]) == 0
    with (tmp_path / "run" / "loss.csv").open(newline="") as table:
        driven = {row["update"]: row["success"] for row in csv.DictReader(table) if row["success"]}
    assert driven.keys() == {"3", "4"}
    assert set(driven.values()) <= {"0", "0.5", "1"}
    file = tmp_path / "figures.json"
    words = ["eval", str(tmp_path / "run"), "--sim", TOY, "--episodes", "2", "--steps", "1"]
    assert main([*words, "--engine", "eager", "--json", str(file)]) == 0
    assert json.loads(file.read_text())["episodes"] == 2
    assert main(["eval", str(tmp_path / "run"), "--episodes", "1"]) == 2
    assert "mini_lift is told positions, not joints" in capsys.readouterr().err


def test_a_robot_that_waits_is_not_told_to_go(contract):
    """Until the first action it stands where it was reset to, and no step counts."""
    with SimulatedRobot(contract, False, sim=TOY) as robot:
        robot.reset(5, 10**9)
        before = robot.obs["joints"].copy()
        assert robot.advance(10**9).holding == "no chunk yet"
        robot.follow({"arm": before})
        assert robot.advance(2 * 10**9).holding == "waiting for a set-point elsewhere"
        robot.follow({"arm": before + 0.1})
        assert not robot.advance(3 * 10**9).holding
        np.testing.assert_allclose(robot.obs["joints"], before + 0.1)


# ------------------------------------------------------------------------------------- mistakes


def test_names(monkeypatch):
    """One that there is none of, and one whose package is not installed."""
    with pytest.raises(UserError, match="no simulator 'mini_lft'; did you mean 'mini_lift'"):
        simulator.found("mini_lft")
    absent = simulator.Entry("a_package_that_is_not_there:It", "make absent", "", "")
    monkeypatch.setitem(simulator.SIMULATORS, "absent", absent)
    with pytest.raises(UserError, match="absent cannot be imported: No module .*; make absent"):
        simulator.found("absent")


def test_an_own_module_that_raises_is_one_line(tmp_path, monkeypatch):
    """Whatever it raises when it is imported, a mistake of syntax as well."""
    (tmp_path / "wrong_toy.py").write_text("class Toy(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("wrong", "wrong_toy:Toy", simulator.ENTRY_POINTS)
    monkeypatch.setattr(simulator, "entry_points", lambda group: [point])
    with pytest.raises(UserError, match="wrong cannot be imported: invalid syntax.*; mend the p"):
        simulator.found("wrong")


def test_a_contract_of_another_rate_or_simulator(contract):
    """Both rates are said; a topic that it lacks is named."""
    slow = Contract.from_text(contract.text.replace("rate_hz: 10", "rate_hz: 5"))
    with pytest.raises(UserError, match="5 Hz, but toy/reach runs at 10"):
        make_simulator(TOY, slow)
    other = Contract.from_text(contract.text.replace("/lamp", "/lantern"))
    with pytest.raises(UserError, match="toy/reach has no .*JointState on /lantern"):
        make_simulator(TOY, other)


@pytest.fixture
def reach(toy):
    """The how-to's class."""
    import toy_arm

    return toy_arm.Reach


def test_a_simulator_that_raises_leaves_whole_bags(contract, reach, tmp_path, monkeypatch):
    """One line with step and seed; what was recorded before is there, the rest is not."""
    step = reach.step

    def fail(self, told):
        if self.steps == 3 and self.seed == 2:
            raise RuntimeError("the physics diverged")
        return step(self, told)

    begin = reach.reset
    monkeypatch.setattr(reach, "step", fail)
    monkeypatch.setattr(
        reach, "reset", lambda self, seed: (setattr(self, "seed", seed), begin(self, seed))[1]
    )
    said = "toy/reach: it raised RuntimeError at step 3 of seed 2: the physics diverged; mend"
    with pytest.raises(UserError, match=said):
        record_demonstrations(contract, tmp_path, 4, sim=TOY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed_00000", "seed_00001"]
    report = convert([tmp_path], contract, tmp_path / "dataset")
    assert report.episodes == 2


def test_an_expert_that_is_lacking(contract, reach, tmp_path, monkeypatch):
    """Nothing is recorded, not even a folder made."""
    monkeypatch.setattr(reach, "expert", lambda self, seed: None)
    with pytest.raises(UserError, match="toy/reach has no expert; record"):
        record_demonstrations(contract, tmp_path / "bags", 1, sim=TOY)
    assert not (tmp_path / "bags").exists()


def test_an_expert_that_never_succeeds_is_told_soon(contract, reach, tmp_path, monkeypatch):
    """And not when all training seeds are used up; one that does now and then goes on."""
    monkeypatch.setattr("diffusion_policy_ros.demonstrations.HOPELESS", 3)
    act, begin = reach.act, reach.reset
    monkeypatch.setattr(
        reach, "reset", lambda self, seed: (setattr(self, "seed", seed), begin(self, seed))[1]
    )

    def seldom(self, observation, told):
        able = self.seed % 3 == 2
        return act(self, observation, told) if able else [observation["joints"]] * 2

    monkeypatch.setattr(reach, "act", seldom)
    assert record_demonstrations(contract, tmp_path / "bags", 2, sim=TOY).failed == [0, 1, 3, 4]
    monkeypatch.setattr(reach, "act", lambda self, seen, told: [seen["joints"]] * 2)
    with pytest.raises(UserError, match="toy/reach: its expert failed in all of 3 episodes; mend"):
        record_demonstrations(contract, tmp_path / "none", 2, sim=TOY)
    assert not list((tmp_path / "none").iterdir())


def test_an_expert_that_is_not_recorded(contract):
    """A contract that derives actions from states has no topic for commands."""
    head = contract.text.partition("  record:")[0]
    derived = Contract.from_text(f"{head}  record: next_state\n")
    with pytest.raises(UserError, match="the expert of toy/reach is not recorded; record: {topic"):
        SimulatedRobot(derived, False, True, TOY)


def test_a_seed_that_it_cannot_take(contract, reach, monkeypatch):
    """Its own line."""

    def refuse(self, seed):
        raise UserError(f"seed {seed} is odd", "toy/reach", "use an even one")

    monkeypatch.setattr(reach, "reset", refuse)
    with SimulatedRobot(contract, False, sim=TOY) as robot, pytest.raises(UserError, match="odd"):
        robot.reset(3, 0)


def test_the_demo_needs_a_contract_for_a_simulator_without_one(toy, tmp_path, capsys, monkeypatch):
    """Before anything is recorded."""
    monkeypatch.setattr("diffusion_policy_ros.cli.demo._check_parts", lambda: None)
    assert main(["demo", "--sim", TOY, "--state", "--out", str(tmp_path)]) == 2
    assert "no contract of toy/reach is shipped; give its contract" in capsys.readouterr().err
