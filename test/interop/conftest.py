"""Checkpoints of other projects, unpacked, and the numbers that their own code gave."""

import lzma
import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = ROOT / "test" / "golden" / "interop"
ELSEWHERE = Path(os.environ.get("DIFFUSION_POLICY_INTEROP", ROOT.parent / "shared" / "interop"))


@pytest.fixture(scope="session")
def foreign_folder(tmp_path_factory):
    """A function: name -> its folder, every file unpacked."""
    found = {}

    def unpacked(name):
        if name not in found:
            source = next((f / name for f in (HERE, ELSEWHERE) if (f / name).is_dir()), None)
            if source is None:
                pytest.skip(f"{name} is not here: set DIFFUSION_POLICY_INTEROP to its folder")
            folder = tmp_path_factory.mktemp(name)
            for path in source.iterdir():
                target = folder / path.name.removesuffix(".xz")
                if path.suffix == ".xz":
                    with lzma.open(path) as packed, target.open("wb") as out:
                        shutil.copyfileobj(packed, out)
                else:
                    shutil.copyfile(path, target)
            found[name] = folder
        return found[name]

    return unpacked
