"""Several tasks in one policy: told by text, learned as an embedding, refused when unknown."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.dataset import Index
from diffusion_policy_ros.data.edits import edit
from diffusion_policy_ros.engine import build_engine
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.evaluation import success_hook
from diffusion_policy_ros.policy.checkpoint import load_policy
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.runtime.inference import make_chunk, warm_up
from diffusion_policy_ros.runtime.sampling import Sampling
from diffusion_policy_ros.train.batches import open_data
from diffusion_policy_ros.train.trainer import train

TASKS = ("to the left", "to the right")


def with_tasks(recipe, **settings):
    """The recipe for both tasks."""
    more = {f"training.{key}": str(value) for key, value in settings.items()}
    return Recipe.from_text(recipe.to_text(), overrides={"policy.tasks": str(list(TASKS)), **more})


@pytest.fixture
def two_ways(dataset):
    """The same states, and motions that only the task decides: even episodes left, odd right."""
    shard, index = dataset / "shards" / "first", Index.load(dataset)
    actions = np.load(shard / "action.npy")
    rng = np.random.default_rng(0)
    actions[:] = rng.uniform(-0.01, 0.01, actions.shape)
    for number, episode in enumerate(index.episodes):
        rows = slice(episode.start, episode.start + episode.frames)
        actions[rows, 0] += (-1, 1)[number % 2]
        said = TASKS[number % 2]
        chosen = partial(list, [number])
        edit(dataset, "t", chosen, lambda e, said=said: dataclasses.replace(e, task=said))
    np.save(shard / "action.npy", actions)
    return dataset


def chunk(policy, dataset, task):
    """What a policy does where a demonstration began."""
    data = open_data(dataset, with_tasks(policy.recipe))
    batch = data.training.dataset.episode(0)
    window = {key: batch[key][:2] for key in policy.contract.observations}
    sampling = Sampling.of(policy.recipe.policy, task=task)
    engine = build_engine(policy, "eager", "cpu")
    generator = torch.Generator().manual_seed(0)
    return make_chunk(engine, policy.contract, window, 0, sampling, generator).actions


def test_a_policy_does_the_task_that_it_is_told(two_ways, recipe, tmp_path):
    """The same window, the same noise: to the left, or to the right."""
    learning = with_tasks(recipe, updates=70, lr=5e-3, val_every=0, batch_size=8)
    checkpoint = train(two_ways, learning, tmp_path / "run", progress="none", say=len)
    policy = load_policy(checkpoint)
    assert policy.recipe.policy.tasks == TASKS
    left, right = (chunk(policy, two_ways, task)[:, 0].mean() for task in TASKS)
    assert left < -0.5 and right > 0.5
    warm_up(build_engine(policy, "eager", "cpu"), Sampling.of(policy.recipe.policy, task=TASKS[0]))


def test_a_task_is_refused_by_name_when_it_was_not_trained():
    """And where several were, one has to be given; nobody guesses."""
    settings = Recipe.from_text(f"policy: {{tasks: {list(TASKS)}}}").policy
    with pytest.raises(UserError, match="no task 'to the lift' was trained; did you mean 'to the"):
        Sampling.of(settings, task="to the lift")
    with pytest.raises(UserError, match="no task is said; give one of: to the left, to the right"):
        Sampling.of(settings)
    one = Recipe.from_text("policy: {tasks: [pick]}").policy
    assert Sampling.of(one).task == Sampling.of(one, task="").task == "pick"
    with pytest.raises(UserError, match="no tasks were trained"):
        Sampling.of(Recipe().policy, task="pick")


def test_an_episode_of_another_task_is_not_learned_silently(two_ways, recipe):
    """It is named; nor is one that says none."""
    edit(two_ways, "t", lambda: [1], lambda e: dataclasses.replace(e, task="somewhere"))
    with pytest.raises(UserError, match=r"episode 1 \(bag1\): no task 'somewhere' was trained"):
        open_data(two_ways, with_tasks(recipe))
    edit(two_ways, "t", lambda: [1], lambda e: dataclasses.replace(e, task=""))
    with pytest.raises(UserError, match=r"episode 1 \(bag1\): no task is said; give one of"):
        open_data(two_ways, with_tasks(recipe))


def test_without_tasks_a_recipe_takes_episodes_of_any(two_ways, recipe):
    """And its batches hold what they always held."""
    batch = open_data(two_ways, recipe).training.batch([0, 3])
    assert set(batch) == {"camera", "position", "action", "action_is_pad"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tasks: [a, a]", "name each task once"),
        ("tasks: [a, '']", "name each task once"),
        ("tasks: [a, b], conditioning: inpainting", "use another conditioning"),
    ],
)
def test_tasks_that_make_no_sense_are_refused(setting, message):
    """When the recipe is read."""
    with pytest.raises(UserError, match=message):
        Recipe.from_text(f"policy: {{{setting}}}")


def test_a_simulator_cannot_be_told_one_of_several_tasks(dataset, recipe):
    """It is said before training, and not in its middle; a checkpoint of such a one is read."""
    with pytest.raises(UserError, match="training.eval_sim: .*one task.*; leave it out"):
        success_hook(with_tasks(recipe, eval_sim="mini_lift"), dataset)


def test_an_observation_that_is_called_task_stays_what_it_is(dataset, recipe):
    """It cannot be told beside the tasks."""
    text = Index.load(dataset).contract
    contract = Contract.from_text(text.replace("position: {", "task: {"))
    DiffusionPolicy(recipe, contract)
    with pytest.raises(UserError, match="has an observation 'task'"):
        DiffusionPolicy(with_tasks(recipe), contract)


def test_training_with_tasks_resumes_bit_for_bit(two_ways, recipe, tmp_path):
    """The embedding and its average are of the state."""
    learning = with_tasks(recipe, val_every=0)
    quiet = {"progress": "none", "say": len}
    once = load_policy(train(two_ways, learning, tmp_path / "once", **quiet)).state_dict()
    train(two_ways, learning, tmp_path / "twice", stop_after=5, **quiet)
    resumed = train(two_ways, learning, tmp_path / "twice", resume=True, **quiet)
    found = load_policy(resumed).state_dict()
    assert "encoder.task.weight" in found
    assert all(torch.equal(found[name], once[name]) for name in once)


def test_a_robot_that_is_only_seen_learns_tasks(dataset, recipe):
    """Statistics are taken of windows without their pictures: of no observation, then."""
    index = Index.load(dataset)
    contract = Contract.from_text(
        "".join(line for line in index.contract.splitlines(True) if "  position:" not in line)
    )
    seen = dataclasses.replace(index, contract=contract.text, contract_hash=contract.hash)
    seen.save(dataset)
    for number, task in enumerate(TASKS * 2):
        chosen = partial(list, [number])
        edit(dataset, "t", chosen, lambda e, task=task: dataclasses.replace(e, task=task))
    training = open_data(dataset, with_tasks(recipe)).training
    assert list(training.statistics(images=False)) == ["action"]
    assert training.batch(np.arange(3))["task"].shape == (3, 2, 2)
