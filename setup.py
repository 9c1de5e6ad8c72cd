"""Build the package for colcon (ament_python) and for pip alike."""

import os

from setuptools import find_packages, setup

NAME = "diffusion_policy_ros"
SHARE = f"share/{NAME}"
SHIPPED_FOLDERS = ("config", "launch")

MESSAGES = (
    "sensor-msgs",
    "geometry-msgs",
    "trajectory-msgs",
    "nav-msgs",
    "visualization-msgs",
    "diagnostic-msgs",
    "std-msgs",
    "std-srvs",
)


def shipped_files():
    """List what ament and `shipped.py` look for under `share`, folder by folder."""
    files = [
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (SHARE, ["package.xml"]),
    ]
    for top in SHIPPED_FOLDERS:
        for folder, subfolders, names in os.walk(top):
            subfolders[:] = sorted(name for name in subfolders if name != "__pycache__")
            paths = [os.path.join(folder, name) for name in sorted(names)]
            files.append((os.path.join(SHARE, folder), paths))
    return files


def ros_wheels(prefix, rclpy, messages):
    """List one ROS release's wheels: they have one version a package and release."""
    return [f"{prefix}-rclpy[fastrtps]~={rclpy}"] + [
        f"{prefix}-{name}~={messages}" for name in MESSAGES
    ]


OPENVINO = ["openvino>=2025.2", "packaging"]  # which its front end for torch imports
VIDEO = ["av>=14"]
LEROBOT = ["pyarrow>=15", *VIDEO]
ZARR = ["imagecodecs>=2024.1.1"]
TEST = [
    *OPENVINO,
    *LEROBOT,
    *ZARR,
    "pytest>=7",
    "pytest-timeout",
    "pytest-xdist",
    "pytest-randomly",
    "hypothesis",
    "diffusers>=0.30",
    "matplotlib",
    "tensorboard>=2.12",
    "h5py>=3",
    "colcon-core",
    "colcon-ros",
    "colcon-package-information",
]

setup(
    name=NAME,
    version="0.1.0",
    description="Record, convert, train and run a Diffusion Policy on a ROS 2 arm.",
    license="Apache-2.0",
    maintainer=f"{NAME} maintainers",
    maintainer_email="maintainers@diffusion-policy-ros.invalid",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={NAME: ["py.typed"]},
    data_files=shipped_files(),
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.2,<3",
        "numpy>=1.26,<3",
        "scipy>=1.11",
        "pyyaml>=6",
        "safetensors>=0.4.3",
        "tqdm>=4.60",
        "Pillow>=9.1",
        "rosbags>=0.11,<0.12",
        "mcap>=1.1,<2",
        "lz4>=4",
        "zstandard>=0.21",
    ],
    extras_require={
        # One of the two in one environment: both have the same import names.
        "ros": ros_wheels("ros", rclpy="9.1", messages="5.5"),
        "ros-jazzy": ros_wheels("ros-jazzy", rclpy="7.1", messages="5.3"),
        "sim": ["mujoco>=3.2"],
        "vision": ["timm>=1.0"],
        # What they need; themselves come without what they ask for: make robosuite, make pusht.
        "gym-pusht": ["gymnasium", "farama-notifications", "cloudpickle", "pymunk<7", "shapely"],
        "robosuite": ["numba", "termcolor", "opencv-python-headless"],
        "plot": ["matplotlib"],
        # It needs NumPy 2: beside a ROS that is built for 1.26 it has an environment of its own.
        "view": ["rerun-sdk>=0.26"],
        "tensorboard": ["tensorboard>=2.12"],
        "wandb": ["wandb"],
        "robomimic": ["h5py>=3"],
        "video": VIDEO,
        "lerobot": LEROBOT,
        "zarr": ZARR,
        "openvino": OPENVINO,
        "test": TEST,
        "dev": ["ruff", "mypy", "import-linter", "types-PyYAML"],
    },
    zip_safe=False,
    entry_points={
        "console_scripts": [
            f"diffusion-policy = {NAME}.cli.main:main",
            f"policy_node = {NAME}.ros.policy_node:main",
            f"episode_recorder = {NAME}.ros.episode_recorder:main",
            f"sim_robot = {NAME}.ros.sim_robot:main",
            f"action_player = {NAME}.ros.action_player:main",
        ],
    },
)
