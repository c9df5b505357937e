"""What each process of tests/test_train_processes.py does: several whole runs, one by one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import daptkit
import daptkit.data.order
import daptkit.train.compiling
from aligners import install_shade
from daptkit.cli.main import run
from daptkit.config import AdaptConfig, to_toml
from daptkit.errors import DaptkitError
from daptkit.method import Method
from daptkit.train.guard import processes_guard
from daptkit.train.loop import Trainer
from daptkit.train.progress import SilentReporter
from daptkit.train.world import joined_world, spoken_by
from fakes import in_process, make_job, tiny_config, write_weights
from host.conftest import Site

BATCH = 12
STEPS = 10
"""Steps of an epoch, at least; 50 would only take longer."""


class Listener(SilentReporter):
    """Keeps the lines of a run."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        """Keep the line."""
        self.lines.append(text)


RUNS: dict[str, dict[str, Any]] = {
    "aligned": {"method": "shade+dann+bbse", "aug": "digits"},
    "gradual": {"method": "coral", "finetune": "gradual", "epochs": 4, "lr": 0.02},
    "frozen": {"method": "mmd", "finetune": "frozen", "trunk_views": 2, "aug": "digits"},
    "again": {"method": "shade+coral", "finetune": "frozen", "trunk_views": 2, "aug": "digits"},
    "parts": {"method": "mmd", "grad_accum_steps": 2, "aug": "digits"},
    "compiled": {"method": "mmd", "compile": True, "finetune": "gradual", "epochs": 2},
    "mixed": {"method": "cdan", "amp": True, "bn": "split"},
    "selected": {"method": "coral", "select": "snd", "epochs": 4, "lr": 0.05},
    "normalised": {"method": "adabn+bbse"},
    "standardised": {"method": "adabn+bbse"},
}
"""Name to options of runs whose results must not depend on the number of processes."""


def prepare_files(folder: Path) -> None:
    """Write images, weights and a plugin package; every process finds them."""
    tiny_config(folder)
    write_weights(folder)
    install_shade(Site(folder / "site"))


def configuration(folder: Path, name: str, **values: Any) -> AdaptConfig:
    """Return a run of :data:`RUNS`, with BatchNorm in its network but for the first."""
    options = {**RUNS.get(name, {}), **values}
    if name in ("gradual", "frozen", "again", "parts", "compiled", "mixed", "normalised"):
        options |= write_weights(folder)
    return tiny_config(folder, batch_size=BATCH, **{"out": str(folder / name), **options})


def whole_runs(folder: Path) -> dict[str, Any]:
    """Do every run and return what each told."""
    found: dict[str, Any] = {}
    for name in RUNS:
        listener = Listener()
        result = daptkit.adapt(configuration(folder, name), reporter=listener)
        found[name] = {
            "lines": listener.lines,
            "leads": result.leads,
            "data": json.dumps(result.data),
        }
    return found


class Faulty(Method):
    """A method with a weight, which misbehaves as the class says, on rank 1 alone."""

    at = 7

    def __init__(self, options: Any, task: Any) -> None:
        super().__init__(options, task)
        self.weight = torch.nn.Parameter(torch.ones(()))

    def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        """Return a loss, but for the fault."""
        if ctx.step == self.at and os.environ.get("RANK") == "1":
            self.fail()
        if ctx.step % 3 == 2:
            return {}
        return {"loss": self.weight.square() * ctx.gather(source.features).mean()}

    def fail(self) -> None:
        """Raise."""
        raise ValueError("only here")


class Sound(Faulty):
    """Leaves its loss, and so its weight, out of every third step."""

    at = -1


class Terminating(Faulty):
    """Is asked to end."""

    def fail(self) -> None:
        """Send SIGTERM to this process, and go on."""
        os.kill(os.getpid(), signal.SIGTERM)


def train(folder: Path, factory: type[Method], name: str, **values: Any) -> dict[str, Any]:
    """Train one job by all processes; return its weights, or what went wrong."""
    with joined_world("cpu") as world:
        listener = Listener()
        config = configuration(folder, "plain", out=str(folder / name), **values)
        job, _ = make_job(config, in_process(factory, needs=frozenset({"source", "target"})))
        try:
            with spoken_by(world), processes_guard():
                trainer = Trainer(replace(job, world=world, reporter=listener))
                trainer.run()
        except DaptkitError as error:
            return {"error": str(error), "code": error.exit_code}
        return {"module": trainer.module.state_dict(), "lines": listener.lines}


def half(folder: Path, name: str) -> None:
    """Train the first half of a run of two epochs, and leave its checkpoint."""
    end = Trainer._save

    def save(self: Trainer) -> None:
        end(self)
        raise KeyboardInterrupt

    Trainer._save = save  # type: ignore[method-assign]
    try:
        train(folder, Sound, name, epochs=2)
    except KeyboardInterrupt:
        pass
    finally:
        Trainer._save = end  # type: ignore[method-assign]


def agreements() -> dict[str, Any]:
    """Try what processes agree on."""
    with joined_world("cpu") as world:

        def refuse() -> None:
            raise daptkit.errors.DataError("no such thing")

        found: dict[str, Any] = {
            "first": world.first(lambda: world.rank + 7),
            "all": world.all_of(world.rank),
            "signal": world.agreed(15 if world.rank == world.size - 1 else None),
            "no signal": world.agreed(None),
        }
        turns: dict[str, Callable[[], Any]] = {
            "first fails": lambda: world.first(refuse),
            "last fails": lambda: world.node_by_node(
                refuse if world.rank == world.size - 1 else lambda: None
            ),
        }
        for name, run in turns.items():
            try:
                run()
            except daptkit.errors.DataError as error:
                found[name] = (str(error), error.told_elsewhere)
        for parts in (1, 2, 5):
            sizes = list(range(1, parts + 1))
            rows = torch.arange(float(sum(sizes)))[:, None] * torch.ones(1, 2)
            own = [rows[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(parts)]
            mine = list(world.own(own))
            joined = world.joined({"x": torch.cat(mine)} if mine else {}, sizes)
            found[f"joined {parts}"] = bool(torch.equal(joined["x"], rows))
        return found


def command(folder: Path, *options: str) -> tuple[int, str, str]:
    """Call the command line; return exit code and what it wrote to stdout and stderr."""
    config = folder / f"{os.environ.get('RANK', '0')}.toml"
    config.write_text(to_toml(tiny_config(folder, out=str(folder / "command"))))
    spoken = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(spoken[0]), contextlib.redirect_stderr(spoken[1]):
        code = run(["adapt", "--config", str(config), *options])
    return code, spoken[0].getvalue(), spoken[1].getvalue()


def main(folder: Path) -> None:
    """Do everything in a folder of :func:`prepare_files` and store what this process found."""
    os.environ["DAPTKIT_CACHE"] = str(folder / "cache")
    sys.path.insert(0, str(folder / "site"))
    found = {
        "agreements": agreements(),
        "runs": whole_runs(folder),
        "sound": train(folder, Sound, "sound"),
        "continued": train(folder, Sound, "halved", epochs=2),
        "terminated": train(folder, Terminating, "terminated", epochs=2),
        "mistake": command(folder, "--batch-size", "7"),
        "done": command(folder, "--batch-size", "8"),
        "faulty": train(folder, Faulty, "faulty"),
    }
    torch.save(found, folder / f"{os.environ.get('RANK', '0')}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    # It traces, guards and compiles again as the real one does, and needs no C++ compiler.
    daptkit.train.compiling._BACKEND = "eager"
    daptkit.data.order._MIN_STEPS = STEPS
    home = Path(sys.argv[1])
    if "RANK" not in os.environ:
        # What several processes continue is begun by one.
        prepare_files(home)
        half(home, "halved")
        shutil.copytree(home, sys.argv[2])
    main(home)
