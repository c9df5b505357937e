"""The process that computes UMAP embeddings; it is run as a script and imports no daptkit.

It first says whether it is ready: ``{"error": null}``. A request is one line of JSON,
``{"shape": [N, D], "seed": 0}``, and N x D float32 values; the answer one line,
``{"error": null}``, and N x 2 float32 values, or ``{"error": "ValueError"}`` alone. Of an error
only its type is told, since its text may hold a path.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

NICENESS = 10
NEIGHBORS = 15
MIN_DIST = 0.1
_WARM_UP_POINTS = 64
_WATCH_SECONDS = 1.0


def embed(features: Any, seed: int) -> Any:
    """Return the UMAP coordinates (N, 2) of features (N, D), float32.

    Reference: McInnes, Healy, Melville 2018, arXiv:1802.03426.
    """
    import umap

    reducer = umap.UMAP(
        n_neighbors=min(NEIGHBORS, len(features) - 1),
        min_dist=MIN_DIST,
        random_state=seed,
        n_jobs=1,
    )
    return reducer.fit_transform(features)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Warm up, then answer requests until there are no more."""
    # One compilation of numba's functions takes several times as long as the embedding itself.
    _answer(answers, _warm_up)
    while line := requests.readline():
        header = json.loads(line)
        n, d = header["shape"]
        content = requests.read(4 * n * d)
        _answer(answers, partial(_embedded, content, header))


def _warm_up() -> bytes:
    import numpy as np

    points = np.random.default_rng(0).normal(size=(_WARM_UP_POINTS, 8))
    embed(points.astype(np.float32), 0)
    return b""


def _embedded(content: bytes, header: Any) -> bytes:
    import numpy as np

    features = np.frombuffer(content, dtype=np.float32).reshape(header["shape"])
    coordinates = np.ascontiguousarray(embed(features, header["seed"]), dtype=np.float32)
    return coordinates.tobytes()


def _answer(answers: BinaryIO, compute: Callable[[], bytes]) -> None:
    content, fault = b"", None
    try:
        content = compute()
    except Exception as error:  # noqa: BLE001 - whatever a foreign library raises is an answer
        fault = type(error).__name__
    answers.write(json.dumps({"error": fault}).encode() + b"\n" + content)
    answers.flush()


def _end_with_parent() -> None:
    """End once the parent is gone, however it ended, even in the middle of an embedding."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


def main() -> None:
    """Serve on stdin and stdout; what libraries print goes to stderr."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
