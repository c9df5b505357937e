"""Augmented views of a frozen run: how they are made, kept, chosen and trained on."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from daptkit.data import Augment, batch_indices
from daptkit.data.augment import N_DRAWS
from daptkit.errors import Terminated, UsageError
from daptkit.recipes import adapt
from daptkit.train.adaptation import run_adaptation
from daptkit.train.device import derive_seed
from daptkit.train.domains import training_batches
from daptkit.train.inference import SplitPasses
from daptkit.train.job import Job
from daptkit.train.loop import Trainer
from daptkit.train.progress import SilentReporter
from daptkit.train.views import TrunkViews, ViewImages, chosen_views
from fakes import drawn, in_process, make_job, method_of, tiny_config, write_weights

VIEWS = {"finetune": "frozen", "aug": "digits", "trunk_views": 2}
CPU = torch.device("cpu")


class Lines(SilentReporter):
    """Keeps what is told of trunk features and views."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def line(self, text: str) -> None:
        if text.startswith(("trunk features", "augmented views")):
            self.told.append(text)


class Pixels:
    """Images in memory."""

    def __init__(self, n: int) -> None:
        self.pixels = torch.from_numpy(drawn(n, 4)[0])[:, None]

    def prefetch(self, batches: Any) -> Any:
        for rows in batches:
            yield self.pixels[torch.from_numpy(rows)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))


def config_of(folder: Path, **values: Any) -> Any:
    return tiny_config(folder, **{**VIEWS, "in_chans": 1, **write_weights(folder), **values})


def frozen_job(folder: Path, *methods: Any, **values: Any) -> Job:
    return make_job(config_of(folder, **values), *methods)[0]


def told(folder: Path, **values: Any) -> list[str]:
    reporter = Lines()
    run_adaptation(config_of(folder, **values), reporter)
    return reporter.told


def view(rows: np.ndarray, size: int, *, seed: int = 3, number: int = 0) -> torch.Tensor:
    """Return a view of rows of 20 images, read ``size`` at a time."""
    images: Any = ViewImages(Pixels(20), rows, Augment("digits"), seed, number)  # type: ignore[arg-type]
    assert len(images) == len(rows)
    starts = range(0, len(rows), size)
    return torch.cat(list(images.prefetch(np.arange(len(rows))[s : s + size] for s in starts)))


def test_a_view_does_not_depend_on_batches_or_on_the_other_rows() -> None:
    rows = np.arange(1, 20)
    whole = view(rows, 19)
    assert torch.equal(view(rows, 4), whole)
    assert torch.equal(view(rows[5:], 3), whole[5:])
    generator = torch.Generator().manual_seed(derive_seed(3, 0, 6, 5))
    draws = torch.rand(N_DRAWS, 1, generator=generator)
    assert torch.equal(Augment("digits")(Pixels(20).pixels[6:7], draws=draws), whole[5:6])


def test_seeds_views_and_rows_are_changed_in_different_ways() -> None:
    rows = np.arange(8)
    first = view(rows, 8)
    for other in (view(rows, 8, seed=4), view(rows, 8, number=1)):
        assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    alike = Pixels(1).pixels.expand(8, -1, -1, -1)
    draws = torch.rand(N_DRAWS, 8, generator=torch.Generator().manual_seed(0))
    changed = Augment("digits")(alike, draws=draws)
    assert len({tuple(image.flatten().tolist()) for image in changed}) == 8


def test_the_choice_is_of_seed_and_row_and_even() -> None:
    rows = np.random.default_rng(0).permutation(3000)
    chosen = chosen_views(rows, 3, derive_seed(0, 17, 1, 4))
    assert np.array_equal(chosen[100:200], chosen_views(rows[100:200], 3, derive_seed(0, 17, 1, 4)))
    for numbers in ((1, 17, 1, 4), (0, 18, 1, 4), (0, 17, 0, 4)):
        same = (chosen == chosen_views(rows, 3, derive_seed(*numbers))).mean()
        assert same == pytest.approx(1 / 3, abs=0.05), numbers
    assert np.bincount(chosen, minlength=3) / 3000 == pytest.approx(np.full(3, 1 / 3), abs=0.03)
    # One row over many steps sees each view as often as the other.
    one = np.array([5])
    steps = [chosen_views(one, 2, derive_seed(0, s, 0, 4))[0] for s in range(3000)]
    assert np.mean(steps) == pytest.approx(0.5, abs=0.03)


def test_each_row_gets_the_features_of_its_view() -> None:
    features = torch.arange(2 * 3.0).reshape(2, 3, 1)
    views = TrunkViews(features=features, place=np.array([-1, 0, -1, 1, 2]))
    rows = np.array([4, 1, 3, 4])
    found = views.batch(rows, 12)[:, 0].tolist()
    chosen = chosen_views(rows, 2, 12).tolist()
    assert found == [3 * v + p for v, p in zip(chosen, (2, 0, 1, 2), strict=True)]


def test_training_reads_views_and_whole_splits_are_passed_plain(tmp_path: Path) -> None:
    job = frozen_job(tmp_path)
    data = job.data
    assert data.augment is None and data.from_trunk
    steps = list(
        training_batches(data, start=0, stop=30, batch_size=8, seed=0, device=CPU, with_target=True)
    )
    for part, domain in ((0, data.source), (1, data.target)):
        rows = np.concatenate([step[part].rows.numpy() for step in steps])
        inputs = torch.cat([step[part].inputs for step in steps])
        known = [expected(job, domain, rows, number) for number in range(2)]
        match = torch.stack([torch.isclose(inputs, k, atol=1e-5).all(1) for k in known])
        assert match.sum(0).tolist() == [1] * len(rows)
        assert 0.3 < match[0].float().mean() < 0.7
        taken = {(row, bool(first)) for row, first in zip(rows.tolist(), match[0], strict=True)}
        assert len(taken) > len(set(rows.tolist())), "a row takes another view at another step"
        # A later start sees what an uninterrupted run sees.
        later = next(
            training_batches(
                data, start=7, stop=8, batch_size=8, seed=0, device=CPU, with_target=True
            )
        )
        assert torch.equal(later[part].inputs, steps[7][part].inputs)
    passes = SplitPasses(job.net, data, job.precision)
    for split in ("source_train", "target"):
        domain, rows = data.split(split)
        plain = domain.images.batch(rows)
        with torch.no_grad():
            wanted = job.net.eval().trunk(plain)
        torch.testing.assert_close(passes.of(split, ("trunk",))[1]["trunk"], wanted)


def expected(job: Job, domain: Any, rows: Any, number: int) -> torch.Tensor:
    """Return the trunk's features of one view of rows."""
    images = ViewImages(domain.images, rows, Augment("digits"), 0, number)
    (pixels,) = images.prefetch([np.arange(len(rows))])
    with torch.no_grad():
        return job.net.eval().trunk(pixels)


def test_methods_see_the_same_rows_and_views(tmp_path: Path) -> None:
    job, (rows,) = frozen_job(tmp_path), (batch_indices(90, 8, seed=0, stream=0, step=0),)
    alone = training_batches(
        job.data, start=0, stop=1, batch_size=8, seed=0, device=CPU, with_target=False
    )
    both = training_batches(
        job.data, start=0, stop=1, batch_size=8, seed=0, device=CPU, with_target=True
    )
    first, second = next(alone)[0], next(both)[0]
    assert first.rows.tolist() == rows.tolist() == second.rows.tolist()
    assert torch.equal(first.inputs, second.inputs)


def test_only_what_is_new_is_computed(tmp_path: Path) -> None:
    first = told(tmp_path, out=str(tmp_path / "a"))
    assert first == [
        "trunk features: 0 of 2 domains from the cache, 2 computed",
        "augmented views: 0 of 4 from the cache, 4 computed",
    ]
    for out, values, kept, computed in (
        ("b", {"method": "coral"}, 4, 0),
        ("c", {"trunk_views": 3}, 4, 2),
        ("d", {"seed": 1}, 0, 4),
        ("e", {"aug": "photo"}, 0, 4),
        ("f", {"trunk_views": 1}, 2, 0),
    ):
        lines = told(tmp_path, out=str(tmp_path / out), **values)
        assert lines == [
            "trunk features: 2 of 2 domains from the cache, 0 computed",
            f"augmented views: {kept} of {kept + computed} from the cache, {computed} computed",
        ], out


def test_a_damaged_view_is_computed_again(tmp_path: Path) -> None:
    told(tmp_path, out=str(tmp_path / "a"))
    entries = sorted((tmp_path / "cache" / "features").iterdir())
    assert len(entries) == 2 + 4
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-3])
    lines = told(tmp_path, out=str(tmp_path / "b"))
    assert lines[1] == "augmented views: 0 of 4 from the cache, 4 computed"


def test_a_terminated_run_continues_bit_for_bit(tmp_path: Path) -> None:
    def losses(kill_at: int | None) -> Any:
        def pull(self: Any, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
            if ctx.step == kill_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return {"pull": (target.features.mean() - source.features.mean()).square()}

        return in_process(method_of(pull))

    def trained(out: str, kill_at: int | None = None) -> Job:
        job = frozen_job(tmp_path, losses(kill_at), epochs=2, out=str(tmp_path / out))
        Trainer(job).run()
        return job

    whole = trained("whole")
    with pytest.raises(Terminated):
        trained("cut", 23)
    again = trained("cut")
    assert again.folder is not None and whole.folder is not None
    assert again.folder.metrics.read_bytes() == whole.folder.metrics.read_bytes()
    for name, value in whole.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[name], value)


def test_twin_and_folds_train_on_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    batch = TrunkViews.batch

    def counted(self: TrunkViews, rows: Any, seed: int) -> Any:
        assert (self.place[rows] >= 0).all(), "a held-out row of a fold has views as well"
        read.append(len(rows))
        return batch(self, rows, seed)

    monkeypatch.setattr(TrunkViews, "batch", counted)
    run = run_adaptation(config_of(tmp_path, method="coral"), SilentReporter())
    assert run.twin.held_out.folds == 5
    # Twin and five folds of it read the source; the method and its folds both domains.
    assert len(read) == 50 * 6 + 2 * 50 * 6
    assert run.record["augmentation"] == "digits" and run.record["twin"] == "trained"
    other = config_of(tmp_path, method="coral", out=str(tmp_path / "b"))
    assert run_adaptation(other, SilentReporter()).record["twin"] == "cached"
    fewer = replace(other, trunk_views=1, out=str(tmp_path / "c"))
    assert run_adaptation(fewer, SilentReporter()).record["twin"] == "trained"
    plain = replace(other, trunk_views=0, aug="none", out=str(tmp_path / "d"))
    last = run_adaptation(plain, SilentReporter())
    assert last.record["twin"] == "trained" and last.record["augmentation"] == "none"
    assert not torch.equal(last.twin.net.head.weight, run.twin.net.head.weight)


def test_from_scratch_augments_images_instead(tmp_path: Path) -> None:
    run = run_adaptation(config_of(tmp_path, from_scratch=True), SilentReporter())
    assert run.scratch is not None
    data = run.scratch.fit.passes.data
    assert data.source.views is None and data.target.views is None
    assert data.augment is not None and data.augment.preset == "digits"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"finetune": "full"}, "--trunk-views 2 is for --finetune frozen; --finetune full"),
        ({"finetune": "gradual"}, "--trunk-views 2 is for --finetune frozen; --finetune gradual"),
        ({"aug": "none"}, "--trunk-views 2: with --aug none every view"),
        ({"trunk_views": 0}, "--aug digits: a frozen run reads .* by --trunk-views N"),
    ],
)
def test_options_that_do_not_fit_are_refused_first(
    tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    # Before the data are looked at: there are none.
    config = tiny_config(tmp_path, **{**VIEWS, **values}, source=("nowhere",))
    with pytest.raises(UsageError, match=words) as caught:
        adapt(config)
    assert caught.value.exit_code == 2


def test_auto_names_the_preset_of_the_images(tmp_path: Path) -> None:
    run = run_adaptation(config_of(tmp_path, aug="auto"), SilentReporter())
    assert run.record["augmentation"] == "digits"
