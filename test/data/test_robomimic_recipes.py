"""The recipes for robomimic's tasks: from its file to a trained step and a chunk."""

import pytest
import torch

pytest.importorskip("h5py", reason="needs h5py: pip install -e '.[robomimic]'")

from made_robomimic import demonstration, write  # noqa: E402

from diffusion_policy_ros.cli.describe import made_for  # noqa: E402
from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.data.dataset import WindowDataset  # noqa: E402
from diffusion_policy_ros.data.formats.robomimic import import_robomimic  # noqa: E402
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy  # noqa: E402
from diffusion_policy_ros.policy.recipe import Recipe  # noqa: E402

RECIPES = [
    f"{task}_{observation}_{denoiser}"
    for task in ("can", "square")
    for observation in ("image", "lowdim")
    for denoiser in ("unet", "transformer")
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The smallest data that has windows."""
    path = tmp_path_factory.mktemp("robomimic") / "task.hdf5"
    return write(path, {"demo_0": demonstration(0, 4), "demo_1": demonstration(1, 3)})


@pytest.mark.parametrize("name", RECIPES)
def test_one_step_and_one_chunk(tmp_path, file, name):
    """Each recipe, in its full size, learns from the imported file and gives a chunk."""
    recipe, contract = Recipe.load(name), Contract.load(made_for(name))
    import_robomimic(file, contract, tmp_path / "data")
    settings = recipe.policy
    windows = WindowDataset(tmp_path / "data", settings.n_obs_steps, settings.horizon)
    policy = DiffusionPolicy(recipe, contract)
    policy.set_statistics(windows.statistics())
    batch = windows.batch([0, 5])
    weight = next(policy.denoiser.parameters())
    before = weight.detach().clone()
    loss = policy.train().loss(batch)
    loss.backward()
    # The plainest optimiser: AdamW's moments of 255.6 M weights would take 2 GB.
    torch.optim.SGD(policy.parameters(), recipe.training.lr).step()
    assert torch.isfinite(loss)
    assert not torch.equal(weight, before)
    chunk = policy.eval().sample(batch, steps=1)
    assert chunk.shape == (2, settings.horizon, 7)
    assert torch.isfinite(chunk).all()
