"""The models of a run: the source-only one, and that of its methods; which is delivered."""

from __future__ import annotations

from dataclasses import replace

from daptkit.model import AdaptNet
from daptkit.run import RunFolder
from daptkit.train.aligning import kept_alignments
from daptkit.train.crossfit import HeldOut, held_out
from daptkit.train.deliver import Delivered, deliver, run_passes, with_rule
from daptkit.train.inputs import FittedAlignment, methods_view
from daptkit.train.job import FitResult
from daptkit.train.jobs import JobMaker
from daptkit.train.loop import Trainer
from daptkit.train.record import model_meta
from daptkit.train.scoreset import LAST
from daptkit.train.scoring import selection_rule
from daptkit.train.twin import keep_twin, obtain_twin
from daptkit.train.verdict import Judgement, diagnose_twin, judge_run


def train_twin(folder: RunFolder, maker: JobMaker) -> tuple[Delivered, bool]:
    """Train, or reuse, the source-only model.

    Args:
        folder: where it is delivered.
        maker: of the run.

    Returns:
        the model, and whether an earlier run had trained it.
    """
    maker = replace(maker, methods=())
    twin = obtain_twin(folder, maker)
    delivered = _with_rule(maker, twin.net, twin.fit, twin.held_out)
    deliver(folder, delivered, maker.prepared, model_meta((), maker.prepared), maker.world)
    # What is kept is what the options say, whatever the memory of this machine.
    if not twin.cached and twin.fit.parts == maker.config.grad_accum_steps:
        maker.world.first(lambda: keep_twin(folder, maker, delivered.held_out))
    return delivered, twin.cached


def train_methods(
    folder: RunFolder,
    maker: JobMaker,
    twin: Delivered,
    scratch: Delivered | None,
    inputs: FittedAlignment | None,
) -> tuple[Delivered, Judgement]:
    """Train the methods' model, judge it beside its twin, and deliver the one to use.

    Args:
        folder: of the run.
        maker: of the run.
        twin: the source-only model.
        scratch: the network from random weights, where it was asked for.
        inputs: the alignment of the target's images, where a method has one.
    """
    prepared, config, world = maker.prepared, maker.config, maker.world
    maker, passes = methods_view(maker, twin.fit.passes, twin.net, inputs)
    job = replace(maker.make(maker.prepared.data, folder), twin=passes)
    found, sure = None, any(m.spec.raises_confidence for m in maker.methods)
    if config.select != LAST:
        found = world.first(lambda: diagnose_twin(prepared, twin, config.seed))
        given = (config, prepared.data, twin.fit, found, maker.scores)
        job = replace(job, rule=selection_rule(*given, raises_confidence=sure))
    fit = Trainer(job).run()
    if fit.choice is not None:
        taken = f"epoch {fit.choice.epoch} of {fit.choice.last} is taken (--select {config.select})"
        maker.reporter.line(f"{job.label}: {taken}")
        # Cross-fitted models are to be as far trained as the one that they stand for.
        maker = replace(maker, stop_epoch=fit.choice.epoch)
    kept = (
        *(() if inputs is None else (inputs.stored,)),
        *kept_alignments(maker.methods, job, fit.statistics),
    )
    adapted = replace(_with_rule(maker, job.net, fit, None), alignments=kept)
    judgement = world.first(
        lambda: judge_run(
            prepared,
            twin,
            adapted,
            guard=config.guard,
            seed=config.seed,
            diagnosis=found,
            raises_confidence=sure,
            scratch=scratch,
        )
    )
    meta = model_meta(maker.methods, prepared)
    if judgement.delivers_twin:
        deliver(folder.adapted, adapted, prepared, meta, world)
        deliver(folder, twin, prepared, model_meta((), prepared), world)
    else:
        deliver(folder, adapted, prepared, meta, world)
        world.first(folder.adapted.remove)
    return adapted, judgement


def _with_rule(maker: JobMaker, net: AdaptNet, fit: FitResult, apart: HeldOut | None) -> Delivered:
    prepared = maker.prepared
    passes = run_passes(fit.passes)
    apart = apart or held_out(prepared.data, passes.val_logits, maker.make)
    return with_rule(net, prepared.classes, prepared.data, passes, apart, fit, maker.config.decide)
