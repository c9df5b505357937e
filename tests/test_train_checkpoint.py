"""The checkpoint's file: what goes in comes out bit for bit, and damage is found."""

from __future__ import annotations

import hashlib
import io
import pickle
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from daptkit.errors import DaptkitError
from daptkit.method import Method
from daptkit.train.checkpoint import load_checkpoint, save_checkpoint
from daptkit.train.loop import Trainer
from fakes import in_process, make_job, tiny_config

MAGIC = b"daptkit-checkpoint-2\n"
HEAD = len(MAGIC) + 65


def saved(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    save_checkpoint(folder, state)
    loaded, damaged = load_checkpoint(folder)
    assert loaded is not None and damaged == ()
    return loaded


def tensor_part(folder: Path) -> dict[str, torch.Tensor]:
    """Read the safetensors part with the library alone, by the layout that is documented."""
    content = (folder / "last.ckpt").read_bytes()
    assert content[:HEAD] == MAGIC + hashlib.sha256(MAGIC + content[HEAD:]).hexdigest().encode() + (
        b"\n"
    )
    length = int.from_bytes(content[HEAD : HEAD + 8], "little")
    return load(content[HEAD + 8 : HEAD + 8 + length])


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same bits, NaN and -0 included."""
    same = one.dtype == other.dtype and one.shape == other.shape
    bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
    return same and torch.equal(*bits)


DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_kind_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    drawn = (torch.randn(3, 4, 5, 6) * 50).to(dtype)
    state = {
        "module": {
            "usual": drawn,
            "scalar": drawn[0, 0, 0, 0],
            "empty": drawn[:0],
            "turned": drawn.permute(3, 1, 0, 2),
            "last": drawn.contiguous(memory_format=torch.channels_last),
            "gaps": drawn[:, ::2, 1:],
            "repeated": drawn[:1, :1, :1, :1].expand(2, 3, 1, 1),
            "weight": torch.nn.Parameter(drawn, requires_grad=dtype.is_floating_point),
        }
    }
    loaded = saved(tmp_path, state)["module"]
    assert list(loaded) == list(state["module"])
    for name, value in state["module"].items():
        assert equal(loaded[name], value.detach()), name
        assert not loaded[name].requires_grad
    # Arithmetic may follow the strides, so those of dense tensors are kept.
    for name in ("usual", "turned", "last"):
        assert loaded[name].stride() == state["module"][name].stride(), name
    # Of a part, the part is stored, not the memory behind it.
    assert loaded["gaps"].untyped_storage().nbytes() == loaded["gaps"].nbytes
    assert set(tensor_part(tmp_path)) >= {"module/usual", "module/scalar", "module/empty"}


def test_numbers_that_are_not_finite_keep_their_bits(tmp_path: Path) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    odd.view(torch.int32)[0] += 5  # a NaN with a payload
    assert equal(saved(tmp_path, {"odd": odd})["odd"], odd)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")
def test_what_safetensors_cannot_hold_goes_beside_it(tmp_path: Path) -> None:
    state = {
        "module": {
            "complex": torch.tensor([1 + 2j]),
            "sparse": torch.eye(3).to_sparse(),
            "eight": torch.ones(2).to(torch.float8_e4m3fn),
            "_extra_state": {"seen": 3, "list": [torch.arange(2.0)], "pair": (0.9, 0.999)},
        },
        "notes": ["a line", "Ödem"],
        "target_prior": None,
        "position": 2**40,
    }
    loaded = saved(tmp_path, state)
    module = loaded.pop("module")
    assert torch.equal(module["complex"], state["module"]["complex"])
    assert torch.equal(module["sparse"].to_dense(), torch.eye(3))
    assert module["eight"].dtype == torch.float8_e4m3fn
    assert torch.equal(module["_extra_state"]["list"][0], torch.arange(2.0))
    assert module["_extra_state"]["pair"] == (0.9, 0.999)
    assert loaded == {k: v for k, v in state.items() if k != "module"}
    assert tensor_part(tmp_path) == {}


def test_keys_that_look_alike_are_kept_apart(tmp_path: Path) -> None:
    state = {1: torch.ones(1), "1": torch.zeros(1), "a": {"b": torch.ones(2)}, "a/b": torch.ones(3)}
    loaded = saved(tmp_path, {"optimizer": state})["optimizer"]
    assert torch.equal(loaded[1], torch.ones(1)) and torch.equal(loaded["1"], torch.zeros(1))
    assert len(loaded["a"]["b"]) == 2 and len(loaded["a/b"]) == 3


def test_shared_weights_are_stored_once_and_shared_again(tmp_path: Path) -> None:
    weight = torch.randn(3, 4, 2, 2).contiguous(memory_format=torch.channels_last)
    state = {"tied": weight, "again": weight.detach(), "view": weight[0], "turned": weight.mT}
    loaded = saved(tmp_path, {"module": state})["module"]
    assert set(tensor_part(tmp_path)) == {"module/tied", "module/view", "module/turned"}
    assert loaded["tied"].data_ptr() == loaded["again"].data_ptr()
    for name, value in state.items():
        assert equal(loaded[name], value), name


def test_damage_anywhere_is_found(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"step": 3, "module": {"w": torch.arange(40.0)}})
    path = tmp_path / "last.ckpt"
    whole = path.read_bytes()
    length = int.from_bytes(whole[HEAD : HEAD + 8], "little")
    places = [*range(HEAD + 16), *range(HEAD + 16, HEAD + 8 + length, 7), *range(-200, 0, 9)]
    flipped = [(place % len(whole), 1 << place % 8) for place in places]
    # The digit of the format, and a length of 2**63 bytes and more.
    flipped += [(len(MAGIC) - 2, 1), (HEAD + 7, 128)]
    for place, bit in flipped:
        content = bytearray(whole)
        content[place] ^= bit
        path.write_bytes(content)
        with pytest.raises(DaptkitError, match=r"can be read \(last\.ckpt damaged\)"):
            load_checkpoint(tmp_path)
    cuts = [0, 1, len(MAGIC), HEAD - 1, HEAD, HEAD + 5, HEAD + 100, len(whole) - 1]
    for content in (*(whole[:cut] for cut in cuts), whole + b"\0", b"<!DOCTYPE html>", bytes(999)):
        path.write_bytes(content)
        with pytest.raises(DaptkitError, match=r"can be read \(last\.ckpt damaged\)"):
            load_checkpoint(tmp_path)


def test_a_checkpoint_that_carries_code_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "owned",)

    save_checkpoint(tmp_path, {"step": 3, "x": Bomb()})
    with pytest.raises(DaptkitError, match="no checkpoint of the run can be read"):
        load_checkpoint(tmp_path)
    pickled = pickle.dumps(Bomb())
    body = bytes(8) + pickled
    digest = hashlib.sha256(MAGIC + body).hexdigest().encode()
    (tmp_path / "last.ckpt").write_bytes(MAGIC + digest + b"\n" + body)
    with pytest.raises(DaptkitError, match="no checkpoint of the run can be read"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "owned").exists()


def of_format_1(state: dict[str, Any]) -> bytes:
    body = io.BytesIO()
    torch.save(state, body)
    digest = hashlib.sha256(body.getvalue()).hexdigest().encode()
    return b"daptkit-checkpoint-1\n" + digest + b"\n" + body.getvalue()


def of_format_9() -> bytes:
    magic, body = b"daptkit-checkpoint-9\n", b"unknown"
    return magic + hashlib.sha256(magic + body).hexdigest().encode() + b"\n" + body


@pytest.mark.parametrize(
    ("number", "content"), [(1, of_format_1({"step": 9})), (9, of_format_9())], ids=["1", "9"]
)
def test_another_format_is_named_and_not_called_damaged(
    tmp_path: Path, number: int, content: bytes
) -> None:
    (tmp_path / "last.ckpt").write_bytes(content)
    said = rf"last\.ckpt' is a checkpoint of format {number}, .* reads format 2: continue with"
    with pytest.raises(DaptkitError, match=said) as caught:
        load_checkpoint(tmp_path)
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    assert (tmp_path / "last.ckpt").read_bytes() == content
    # A damaged one of that format is damaged, and gives way.
    save_checkpoint(tmp_path, {"step": 1})
    (tmp_path / "last.ckpt").rename(tmp_path / "previous.ckpt")
    (tmp_path / "last.ckpt").write_bytes(content[:-1])
    assert load_checkpoint(tmp_path) == ({"step": 1}, ("last.ckpt",))


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let the kernel refuse to write more than 100 kB to one file, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_a_write_that_fails_in_the_middle_keeps_the_one_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"step": 1, "module": {"w": torch.ones(9)}})
    with pytest.raises(DaptkitError, match=r"cannot write '.*last\.ckpt': File too large\. Free"):
        save_checkpoint(
            tmp_path, {"step": 2, "module": {"a": torch.ones(9), "w": torch.ones(9**6)}}
        )
    assert [path.name for path in tmp_path.iterdir()] == ["previous.ckpt"]
    state, damaged = load_checkpoint(tmp_path)
    assert state is not None and state["step"] == 1 and damaged == ()


def test_what_cannot_be_stored_leaves_both_checkpoints_alone(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, {"step": step})
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        save_checkpoint(tmp_path, {"step": 3, "x": lambda: None})
    assert load_checkpoint(tmp_path) == ({"step": 2}, ())
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "previous.ckpt"}


class Teacher(Method):
    """Mean teacher on the features: a head of its own and its running average.

    Beside it, what a checkpoint may meet: tied weights, a tensor with other strides and counters
    and flags of other kinds, each of which the losses depend on.
    """

    cut = -1

    def __init__(self, options: Any, task: Any) -> None:
        super().__init__(options, task)
        dim, classes = task.dims["features"], task.num_classes
        self.student = torch.nn.Linear(dim, classes)
        self.inner = torch.nn.Linear(dim, dim, bias=False)
        self.outer = torch.nn.Linear(dim, dim, bias=False)
        self.outer.weight = self.inner.weight
        self.turned = torch.nn.Parameter(torch.randn(dim, classes).t())
        self.register_buffer("average", self.student.weight.detach().clone())
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("total", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("rough", torch.zeros(classes, dtype=torch.bfloat16))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.bool))

    def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        if ctx.step == self.cut:
            raise KeyboardInterrupt
        # In place, so that the average keeps its memory; the student of the step before.
        self.average.lerp_(self.student.weight.detach(), 0.05)
        self.steps += 1
        self.seen[source.labels] = True
        self.total += source.features.detach().double().sum() * 1e-3
        self.rough += source.features.detach().mean().bfloat16()
        taught = torch.nn.functional.linear(target.features, self.average).detach().softmax(1)
        own = self.student(self.outer(self.inner(target.features)))
        weight = (self.seen.float() + self.rough.float()) * (1 + self.steps / 100)
        weight = weight + self.total.float().sum()
        turned = torch.nn.functional.linear(source.features, self.turned)
        return {
            "agree": ((own.softmax(1) - taught).square() * weight).mean(),
            "turned": torch.nn.functional.cross_entropy(turned, source.labels),
        }


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_averages_and_every_other_state_of_a_method_resume_bit_for_bit(
    tmp_path: Path, opt: str
) -> None:
    def train(folder: Path, cut: int = -1) -> tuple[bytes, dict[str, torch.Tensor]]:
        factory = type("Cut", (Teacher,), {"cut": cut})
        job, _ = make_job(tiny_config(folder, epochs=3, opt=opt), in_process(factory))
        trainer = Trainer(job)
        trainer.run()
        assert job.folder is not None
        return job.folder.metrics.read_bytes(), trainer.module.state_dict()

    metrics, whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", cut=120)
    resumed = train(tmp_path / "cut")
    assert resumed[0] == metrics
    assert {"methods.method_fake.average", "methods.method_fake.steps"} <= whole.keys()
    assert resumed[1].keys() == whole.keys()
    for name, value in whole.items():
        assert equal(resumed[1][name], value), name
    stored = tensor_part(tmp_path / "whole" / "run" / "checkpoints")
    assert "module/methods.method_fake.inner.weight" in stored
    assert "module/methods.method_fake.outer.weight" not in stored
    assert any(name.startswith("optimizer/state/") for name in stored)
