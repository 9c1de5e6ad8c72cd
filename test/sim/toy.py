"""The simulator of doc/how-to/your-own-simulator.md, installed as a user would."""

import importlib
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "doc" / "how-to" / "your-own-simulator.md"


def install(folder: Path) -> Path:
    """Write module, contract and entry point into a folder; the contract."""
    (python, contract), (entry,) = (
        _blocks("python|yaml"),
        re.findall(r'simulators": \["(.*)"\]', PAGE.read_text()),
    )
    (folder / "toy_arm.py").write_text(python)
    (folder / "toy_reach.yaml").write_text(contract)
    package = folder / "toy_arm-0.1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-arm\nVersion: 0.1\n")
    (package / "entry_points.txt").write_text(f"[diffusion_policy_ros.simulators]\n{entry}\n")
    importlib.invalidate_caches()
    return folder / "toy_reach.yaml"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```(?:{language})\n(.*?)```", PAGE.read_text(), re.DOTALL)
