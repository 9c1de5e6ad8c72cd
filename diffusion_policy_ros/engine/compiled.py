"""Networks compiled by OpenVINO, and where they are kept.

What is kept beside a checkpoint is OpenVINO's form of the networks, before it is fitted to a
processor: tracing and converting take seconds, fitting does not. It is kept once a process of its
own has fitted and run it: a compiler that crashes on a network must not end a robot's node. The
same process finds how many threads are fastest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import timeit
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
from torch import Tensor, fx

from diffusion_policy_ros import __version__
from diffusion_policy_ros.errors import first_line
from diffusion_policy_ros.policy.checkpoint import sha256

FORMAT = 5
"""Of what is kept; raise it when networks are converted in another way."""
HINTS = {"f32": "f32", "int8": "f32", "bf16": "bf16"}  # dtype -> what OpenVINO computes in
TRIAL_S = 900
"""The largest U-Net of Chi et al. takes half a minute on two cores."""
Models = dict[str, openvino.Model]
WORTH = 0.95
"""More threads are taken where they need no more than this share of the time of fewer."""


class Compiled:
    """A network, fitted to the processor for each size of batch when it is first asked for.

    Args:
        model: OpenVINO's form of it; the first dimension of all inputs is the batch.
        dtype: a key of HINTS.
        threads: to compute with.
        any_batch: fit it once for batches of all sizes, which is slower.
    """

    def __init__(
        self, model: openvino.Model, dtype: str, threads: int, any_batch: bool = False
    ) -> None:
        self._model, self._any_batch = model, any_batch
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": HINTS[dtype],
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # a robot's other processes need the cores, too
            # 2026.4's fused loops are no faster here, and cannot be made of Mish for one thread.
            "SNIPPETS_MODE": "DISABLE",
        }
        self._fitted: dict[int, openvino.InferRequest] = {}

    def fit(self, batch: int) -> openvino.InferRequest:
        """Make it ready for a size of batch."""
        size = -1 if self._any_batch else batch
        if size not in self._fitted:
            shapes = {given: [size, *given.partial_shape[1:]] for given in self._model.inputs}
            self._model.reshape(shapes)
            fitted = CORE.compile_model(self._model, "CPU", self._options)
            self._fitted[size] = fitted.create_infer_request()
        return self._fitted[size]

    def __call__(self, *given: Tensor) -> Tensor:
        """Its output for a batch."""
        request = self.fit(len(given[0]))
        arrays = [part.contiguous().numpy() for part in given]
        return torch.from_numpy(request.infer(arrays, share_inputs=True)[0])


CORE = openvino.Core()


def capabilities() -> set[str]:
    """What the processor computes in, as dtypes of HINTS."""
    has_bf16 = "BF16" in CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return {"f32", "int8", "bf16"} if has_bf16 else {"f32", "int8"}


def convert(network: fx.GraphModule) -> openvino.Model:
    """OpenVINO's form of a traced network.

    Made on a thread of its own, as Python is called back from C++ there: a Ctrl-C, which is raised
    on the main thread, would end the process.
    """
    inputs = [node.meta["val"] for node in network.graph.nodes if node.op == "placeholder"]
    shapes, types = [[-1, *given.shape[1:]] for given in inputs], [given.dtype for given in inputs]
    decoder = TorchFXPythonDecoder(network, input_shapes=shapes, input_types=types)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(openvino.convert_model, decoder).result()


class Store:
    """Converted networks in a folder of a checkpoint.

    Args:
        checkpoint: its directory; None keeps nothing.
        content: what names the checkpoint's content.
        dtype: of the networks.
        say: told once of what takes long, or could not be read or written.
    """

    def __init__(
        self, checkpoint: Path | None, content: str, dtype: str, say: Callable[[str], object]
    ) -> None:
        processor = CORE.get_property("CPU", "FULL_DEVICE_NAME")
        key = [FORMAT, __version__, openvino.__version__, torch.__version__, processor, content]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        self._dtype, self._say = dtype, say
        self._folder = (
            None if checkpoint is None else checkpoint / "compiled" / f"{dtype}-{digest}"
        )

    def get(self, make: Callable[[], Mapping[str, openvino.Model]]) -> tuple[Models, int]:
        """What is kept, or else what `make` gives, which is then tried and kept.

        Returns:
            The networks, and the number of threads to run them with: torch's, or fewer where they
            are faster.

        Raises:
            RuntimeError: the networks cannot be run on this machine.
        """
        if self._folder is not None and self._folder.is_dir():
            try:
                return self._read(self._folder)
            except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
                self._say(f"{self._folder}: is damaged ({first_line(error)}); it is made anew")
        elif self._folder is not None:
            self._say(f"{self._folder}: networks are compiled for this processor, once; wait")
        models, threads = dict(make()), torch.get_num_threads()
        if self._folder is not None:
            try:
                threads = min(threads, self._write(self._folder, models))
            except OSError as error:
                why = first_line(error)
                self._say(f"{self._folder}: cannot be written ({why}); goes on without")
        return models, threads

    def _read(self, folder: Path) -> tuple[Models, int]:
        manifest: Any = json.loads((folder / "manifest.json").read_text())
        digests, threads = manifest["files"], int(manifest["threads"])
        there = {path.name for path in folder.iterdir()} - {"manifest.json"}
        if not isinstance(digests, dict) or not there or there != set(digests):
            raise ValueError("manifest.json does not name what is there")
        for path, digest in digests.items():
            if sha256(folder / path) != digest:
                raise ValueError(f"{path} is not what was written")
        names = {path.split(".")[0] for path in digests}
        models = {name: CORE.read_model(folder / f"{name}.xml") for name in names}
        return models, min(threads, torch.get_num_threads())

    def _write(self, folder: Path, models: Models) -> int:
        part = folder.with_name(f".{folder.name}.part-{os.getpid()}")
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir(parents=True)
            for name, model in models.items():
                _save(model, part / f"{name}.xml")
            threads = _try(part, self._dtype)
            digests = {path.name: sha256(path) for path in sorted(part.iterdir())}
            manifest = {"threads": threads, "files": digests}
            (part / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
            for old in folder.parent.glob(f"{self._dtype}-*"):
                shutil.rmtree(old, ignore_errors=True)
            part.rename(folder)
            return threads
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _save(model: openvino.Model, path: Path) -> None:
    """Write it.

    Raises:
        OSError: it cannot be written.
    """
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(first_line(error)) from error


def _try(folder: Path, dtype: str) -> int:
    """Fit and run the networks of a folder, in a process of its own.

    Returns:
        The fewest threads that the denoiser is fast with.

    Raises:
        RuntimeError: it failed or crashed.
    """
    words = [sys.executable, "-m", __name__, str(folder), dtype]
    try:
        trial = subprocess.run(words, capture_output=True, text=True, check=False, timeout=TRIAL_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"OpenVINO has not compiled this network in {TRIAL_S} s") from None
    if trial.returncode:
        said = trial.stderr.strip().splitlines() or [f"exit status {trial.returncode}"]
        raise RuntimeError(f"OpenVINO fails on this network: {said[-1]}")
    return int(trial.stdout.split()[-1])


def main() -> None:
    """What _try runs."""
    folder, dtype = Path(sys.argv[1]), sys.argv[2]
    most = torch.get_num_threads()
    for path in folder.glob("*.xml"):
        _seconds(path, dtype, most)
    print(_fastest_threads(folder / "late.xml", dtype, most))


def _fastest_threads(path: Path, dtype: str, most: int) -> int:
    """The fewest threads that a network is fast with; on a busy machine nobody can tell: most."""
    if os.getloadavg()[0] > most:
        return most
    threads, best = 1, _seconds(path, dtype, 1)
    for more in (2**power for power in range(1, most.bit_length())):
        if (seconds := _seconds(path, dtype, more)) < WORTH * best:
            threads, best = more, seconds
    return threads


def _seconds(path: Path, dtype: str, threads: int, runs: int = 8) -> float:
    """Of running a network once, with nothing in it; the best of some."""
    model = CORE.read_model(path)
    blank = [
        np.zeros([1, *given.partial_shape.get_min_shape()[1:]], given.element_type.to_dtype())
        for given in model.inputs
    ]
    request = Compiled(model, dtype, threads, any_batch=path.stem == "early").fit(1)
    return min(timeit.repeat(lambda: request.infer(blank), number=1, repeat=runs))


if __name__ == "__main__":
    main()
