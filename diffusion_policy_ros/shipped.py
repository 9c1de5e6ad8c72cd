"""Find the files that are shipped with the package: contracts, recipes, layouts, launch files.

They lie in `config/` and `launch/` of the source tree, and in `share/diffusion_policy_ros/` of
every installation (pip into a virtual environment, pip --user, colcon, merged or not).
An editable or symlinked installation reads the source tree, so an edit counts at once.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from diffusion_policy_ros.errors import UserError, did_you_mean

PACKAGE = "diffusion_policy_ros"


@lru_cache(maxsize=1)
def share_folder() -> Path:
    """Return the folder that holds `package.xml`, `config/` and `launch/`.

    The nearest one above this file wins, so two workspaces or environments never mix.

    Raises:
        UserError: if the package was copied without its shipped files.
    """
    package = Path(__file__).resolve().parent
    for parent in package.parents:
        for folder in (parent, parent / "share" / PACKAGE):
            if (folder / "package.xml").is_file() and (folder / "config").is_dir():
                return folder
    raise UserError(
        f"found neither config/ nor share/{PACKAGE}/config in any folder above",
        where=str(package),
        cure="install the package with pip or colcon instead of copying its folder",
    )


def shipped_path(relative: str) -> Path:
    """Return the path of a shipped file, such as `config/fastdds_large_images.xml`.

    Raises:
        UserError: if there is no such file.
    """
    path = share_folder() / relative
    if path.exists():
        return path
    neighbours = sorted(file.name for file in path.parent.glob("*"))
    cure = did_you_mean(path.name, neighbours) if neighbours else "install the package again"
    raise UserError("no such shipped file", str(path), cure)


def config_names(kind: str) -> list[str]:
    """List the names of the shipped YAML files of a kind, such as `contracts` or `recipes`."""
    return sorted(path.stem for path in (share_folder() / "config" / kind).glob("*.yaml"))


def config_path(kind: str, name: str) -> Path:
    """Return where the shipped YAML file of that kind and name is; there may be none.

    Args:
        kind: the folder in `config/`, such as `contracts` or `recipes`.
        name: the file's name, with or without `.yaml`.
    """
    return share_folder() / "config" / kind / f"{name.removesuffix('.yaml')}.yaml"


def read_config(kind: str, name: str | Path) -> tuple[str, str]:
    """Read a YAML file that somebody gave, or the shipped one of that name.

    Args:
        kind: the folder in `config/`, such as `contracts` or `recipes`.
        name: a path, or a shipped file's name.

    Returns:
        Its text, and its path for messages.

    Raises:
        UserError: there is no such file, or it is no text, or may not be read.
    """
    path = Path(name)
    if not path.is_file() and path.parent == Path("."):
        shipped = config_path(kind, path.stem)
        path = shipped if shipped.is_file() else path
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except PermissionError:
        raise UserError("may not be read", str(path), "change its permissions") from None
    except (OSError, UnicodeDecodeError) as error:
        thing = kind.removesuffix("s")
        is_binary = isinstance(error, UnicodeDecodeError)
        what = "is no text file" if is_binary else f"no such {thing}"
        cure = f"give a YAML file or a shipped {thing}: {', '.join(config_names(kind))}"
        raise UserError(what, str(name), cure) from None
