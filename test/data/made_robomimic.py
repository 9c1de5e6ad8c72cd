"""Files in robomimic's layout, made by hand for the tests."""

import json

import h5py
import numpy as np

SCALE = [0.05, 0.05, 0.05, 0.5, 0.5, 0.5]
ENV_ARGS = {
    "env_name": "PickPlaceCan",
    "type": 1,
    "env_kwargs": {
        "control_freq": 20,
        "controller_configs": {"type": "OSC_POSE", "control_delta": True, "output_max": SCALE},
    },
}
OBSERVATIONS = {
    "agentview_image": (84, 84, 3),
    "robot0_eye_in_hand_image": (84, 84, 3),
    "robot0_eef_pos": (3,),
    "robot0_eef_quat": (4,),
    "robot0_gripper_qpos": (2,),
    "object": (14,),
}


def demonstration(seed, frames, action_dim=7):
    """Arrays of one demonstration: actions, rewards, and obs by key."""
    random = np.random.default_rng(seed)
    obs = {
        key: random.integers(0, 256, (frames, *shape), dtype=np.uint8)
        if len(shape) == 3
        else random.normal(size=(frames, *shape))
        for key, shape in OBSERVATIONS.items()
    }
    actions = random.uniform(-1, 1, (frames, action_dim))
    return {"actions": actions, "rewards": np.eye(frames)[-1], "obs": obs}


def write(path, demos, env_args=ENV_ARGS, masks=None):
    """Write name → demonstration as robomimic does, and give the path."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(env_args)
        for name, demo in demos.items():
            group = data.create_group(name)
            group.attrs["num_samples"] = len(demo["actions"])
            for key in ("actions", "rewards"):
                group[key] = demo[key]
            for key, values in demo["obs"].items():
                group[f"obs/{key}"] = values
        for mask, names in (masks or {}).items():
            file[f"mask/{mask}"] = np.array(names, dtype="S")
    return path
