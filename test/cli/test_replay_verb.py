"""`diffusion-policy replay` of an untrained policy over demonstrations of the simulated arm."""

import json
import re
import shutil

import numpy as np
import pytest

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.convert import Options, convert
from diffusion_policy_ros.data.dataset import Dataset
from diffusion_policy_ros.demonstrations import record_demonstrations
from diffusion_policy_ros.policy.checkpoint import save_checkpoint
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.report import replay_plots

TINY = """
policy:
  num_inference_steps: 2
  replan_steps: 4
  denoiser: {name: unet1d, down_dims: [8, 16], kernel_size: 3, n_groups: 4}
"""
CONTRACT = Contract.load("mini_lift_state")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a policy that has learned nothing, two bags, and a dataset of them."""
    folder = tmp_path_factory.mktemp("replay")
    save_checkpoint(folder / "policy", DiffusionPolicy(Recipe.from_text(TINY), CONTRACT))
    bags = record_demonstrations(CONTRACT, folder / "bags", 2, first_seed=3).bags
    convert(bags, CONTRACT, folder / "dataset", options=Options(keep_idle=True))
    return folder


def replay(made, out, *words, recording="bags", episodes=1, drawn=False):
    """Run the verb; the exit code and the figures. Plots are most of its time."""
    words = [str(made / "policy"), str(made / recording), "--out", str(out), *words]
    words += ["--threads", "1", "--episodes", str(episodes)]
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            patch.setattr(replay_plots, "empty_figure", lambda *_: None)
        code = main(["replay", *words])
    return code, json.loads((out / "replay.json").read_text())


def test_a_bag_is_read_by_the_topics_that_it_was_recorded_with(made, tmp_path):
    """A driver that is called otherwise since: the same meaning, so the same chunks."""
    now = Contract.from_text(CONTRACT.text.replace("topic: /eef_pose", "topic: /arm/pose"))
    save_checkpoint(tmp_path / "policy", DiffusionPolicy(Recipe.from_text(TINY), now))
    (tmp_path / "bags").symlink_to(made / "bags")
    code, found = replay(tmp_path, tmp_path / "out")
    assert code == 0 and found["frames"]["made"] > 20


def test_limits_can_be_the_robots_of_today(made, tmp_path):
    """They belong to the cell, so the contract may have others than the checkpoint's."""
    path = tmp_path / "arm.yaml"
    path.write_text(CONTRACT.text.replace("translation: 0.05", "translation: 1.0e+6"))
    _, found = replay(made, tmp_path / "before")
    assert "translation.step" in found["limits"]["clamped"]
    _, found = replay(made, tmp_path / "now", "--contract", str(path))
    assert "translation.step" not in found["limits"]["clamped"]


def test_a_report_with_figures_plots_and_what_was_compared(made, tmp_path, capsys):
    """Errors a step and field, disagreement, limits, ages; a page that needs nothing else."""
    code, found = replay(made, tmp_path, episodes=2, drawn=True)
    assert code == 0 and found["seed"] == 0
    assert found["chunks"] == len(found["first_actions"][0] + found["first_actions"][1])
    steps = 15  # of 16 predicted actions, from the newest of two observed frames on
    assert all(len(rows["mean"]) == steps for rows in found["error"].values())
    assert len([m for m in found["disagreement"]["rotation"]["mean"] if m is not None]) == 11
    assert found["frames"]["made"] > 40 and found["frames"]["refused"] == {}
    assert found["age_ms"].keys() == CONTRACT.observations.keys()
    page = (tmp_path / "replay.html").read_text()
    words, pictures = re.subn(r'"data:image/png;base64,[^"]*"', "", page)
    assert pictures == 5 and "http" not in words  # which a picture's letters may well spell
    assert "the recorded commands" in page
    said = capsys.readouterr().out
    assert "error of translation: " in said and str(tmp_path / "replay.html") in said


def test_it_replays_with_the_engine_and_precision_of_a_run(made, tmp_path, capsys):
    """The figures name them: the plain one unless another is asked for, which is passed on."""
    _, plain = replay(made, tmp_path / "plain")
    assert plain["engine"] == "eager f32 on cpu"
    words = [str(made / "policy"), str(made / "bags"), "--out", str(tmp_path / "out")]
    assert main(["replay", *words, "--engine", "eager", "--dtype", "int8"]) == 2
    assert "int8; the eager engine computes in f32" in capsys.readouterr().err


def test_bag_and_dataset_give_the_same_chunks(made, tmp_path):
    """What was converted is replayed as what was recorded, with the same noise."""
    _, of_bag = replay(made, tmp_path / "bag")
    _, of_dataset = replay(made, tmp_path / "dataset", recording="dataset")
    ours, theirs = of_bag["first_actions"], of_dataset["first_actions"]
    assert len(ours[0]) > 5
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_every_and_episodes_choose_what_is_replayed(made, tmp_path):
    """--every 1 is a chunk a frame."""
    _, found = replay(made, tmp_path, "--every", "1")
    assert found["chunks"] == found["frames"]["made"] and len(found["recordings"]) == 1


def test_expect_is_a_test_for_the_robots_owner(made, tmp_path, capsys):
    """As before: exit code 0. What is not: exit code 1, and a line for each difference."""
    replay(made, tmp_path / "first")
    expected = tmp_path / "first" / "replay.json"
    assert replay(made, tmp_path / "again", "--expect", str(expected))[0] == 0
    figures = json.loads(expected.read_text())
    figures["first_actions"][0][2][0] += 0.01
    figures["error"]["rotation"]["mean"] = [0.0] * 15
    figures["frames"]["gaps"] = 3
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps(figures))
    capsys.readouterr()
    assert replay(made, tmp_path / "again", "--expect", str(edited))[0] == 1
    lines = [s for s in capsys.readouterr().out.splitlines() if s.startswith("different: ")]
    assert len(lines) == 3
    assert "seed_00003: 1 of" in lines[0] and "chunk 2 by 0.01" in lines[0]
    assert "error, rotation" in lines[1] and "frames, gaps: 0, expected 3" in lines[2]
    assert replay(made, tmp_path / "again", "--steps", "1", "--expect", str(expected))[0] == 1
    assert "different: num_inference_steps: 1, expected 2" in capsys.readouterr().out
    figures["tolerances"] = {"actions": 0.1, "worse": 1e9}
    figures["frames"]["gaps"] = 0
    figures["error"]["rotation"]["mean"] = [1e-3] * 15
    figures["checkpoint"] = "of yesterday"
    edited.write_text(json.dumps(figures))
    assert replay(made, tmp_path / "again", "--expect", str(edited))[0] == 0
    assert "another checkpoint" in capsys.readouterr().out


def test_without_commands_there_is_nothing_to_compare_with(made, tmp_path):
    """A run of the policy has no demonstrator: chunks, limits and ages all the same."""
    from diffusion_policy_ros.data.bags import BagWriter, open_bag

    bag = open_bag(made / "bags" / "seed_00003")
    types = {t: kind for t, (kind, _) in bag.topics.items() if t != "/eef_command"}
    with BagWriter(tmp_path / "bags" / "run", types) as writer:
        for topic, log_ns, msg in bag.messages(types):
            writer.write(topic, log_ns, bytes(msg._raw))
    shutil.copytree(made / "policy", tmp_path / "policy")
    code, found = replay(tmp_path, tmp_path / "out")
    assert code == 0 and found["chunks"] > 5
    assert found["error"]["translation"]["mean"][0] is None
    assert "there is nothing to compare with" in (tmp_path / "out" / "replay.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "bags"], "nowhere: no such directory"),
        (["policy", "nowhere"], "no such bag"),
        (["policy", "policy"], "there is no bag in it"),
        (["policy", "bags", "--every", "0"], "every must be 1 or more"),
        (["policy", "bags", "--sampler", "dimm"], "did you mean 'ddim'?"),
        (["policy", "bags", "--expect", "policy/config.yaml"], "give the replay.json"),
        (["policy", "bags", "--out", "policy/config.yaml"], "is a file"),
    ],
)
def test_mistakes_are_one_line(made, tmp_path, monkeypatch, capsys, words, said):
    """Each with its cure, exit code 2, and nothing written."""
    monkeypatch.chdir(made)
    words = words if "--out" in words else [*words, "--out", str(tmp_path / "out")]
    assert main(["replay", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert not (tmp_path / "out").exists()


def test_a_network_that_is_not_finite_is_named(made, tmp_path, capsys):
    """One line, not a report of nothing."""
    policy = DiffusionPolicy(Recipe.from_text(TINY), CONTRACT)
    for weight in policy.denoiser.parameters():
        weight.data.fill_(float("nan"))
    broken = str(save_checkpoint(tmp_path / "broken", policy))
    assert main(["replay", broken, str(made / "bags"), "--out", str(tmp_path / "out")]) == 2
    assert "the network's output is not finite after the frame stamped" in capsys.readouterr().err


@pytest.mark.parametrize("recording", ["bags", "dataset"])
def test_recordings_that_were_held_out_are_replayed_by_default(made, tmp_path, recording):
    """Bags are known by their content; page and figures say what each was to the training."""
    hashes = [e.hash for e in Dataset(made / "dataset").episodes]
    policy = DiffusionPolicy(Recipe.from_text(TINY), CONTRACT)
    roles = dict(zip(hashes, ("trained", "held out"), strict=True))
    save_checkpoint(tmp_path / "policy", policy, episodes=roles)
    for name in ("bags", "dataset"):
        (tmp_path / name).symlink_to(made / name)
    _, found = replay(tmp_path, tmp_path / "out", recording=recording, episodes=5)
    assert found["roles"] == ["held out"]
    page = (tmp_path / "out" / "replay.html").read_text()
    assert "1 held out of the training" in page and "Judge by those" not in page
    where = tmp_path / "all"
    _, found = replay(tmp_path, where, "--all-roles", recording=recording, episodes=5)
    assert found["roles"] == ["trained", "held out"]
    page = (where / "replay.html").read_text()
    assert "<td>trained</td>" in page and "Judge by those held out" in page


def test_what_a_checkpoint_does_not_know_is_said_to_be_unknown(made, tmp_path):
    """As of those that were saved without their episodes."""
    _, found = replay(made, tmp_path)
    assert found["roles"] == ["unknown"]
    assert "1 unknown to the checkpoint" in (tmp_path / "replay.html").read_text()
