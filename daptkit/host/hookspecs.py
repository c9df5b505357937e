"""The five hooks that a plugin module may implement."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from daptkit.plugin import Event, MethodSpec, ModelSpec, ReaderSpec, ScoreSpec

hookspec = pluggy.HookspecMarker("daptkit")


@hookspec
def daptkit_methods() -> MethodSpec | Iterable[MethodSpec]:  # type: ignore[empty-body]
    """Offer adaptation methods; entry-point group ``daptkit``, one entry per method name.

    Example:
        >>> from daptkit.plugin import MethodSpec, hookimpl
        >>> @hookimpl
        ... def daptkit_methods():
        ...     return MethodSpec(
        ...         name="mean",
        ...         summary="Align feature means.",
        ...         factory="my_package.method:MeanAlignment",
        ...     )
        >>> daptkit_methods().name
        'mean'
    """


@hookspec
def daptkit_readers() -> ReaderSpec | Iterable[ReaderSpec]:  # type: ignore[empty-body]
    """Offer image formats; entry-point group ``daptkit.readers``, one entry per reader name.

    Example:
        >>> from daptkit.plugin import ReaderSpec, hookimpl
        >>> @hookimpl
        ... def daptkit_readers():
        ...     return [ReaderSpec(name="raw", extensions=(".raw",), factory="my_package.raw:read")]
        >>> daptkit_readers()[0].extensions
        ('.raw',)
    """


@hookspec
def daptkit_models() -> ModelSpec | Iterable[ModelSpec]:  # type: ignore[empty-body]
    """Offer backbones; entry-point group ``daptkit.models``, one entry per model name.

    Example:
        >>> from daptkit.plugin import ModelSpec, hookimpl
        >>> @hookimpl
        ... def daptkit_models():
        ...     return ModelSpec(name="tiny", factory="my_package.net:tiny", summary="3 layers.")
        >>> daptkit_models().factory
        'my_package.net:tiny'
    """


@hookspec
def daptkit_scores() -> ScoreSpec | Iterable[ScoreSpec]:  # type: ignore[empty-body]
    """Offer scores without labels; entry-point group ``daptkit.scores``, one entry per name.

    Example:
        >>> from daptkit.plugin import ScoreSpec, hookimpl
        >>> @hookimpl
        ... def daptkit_scores():
        ...     return ScoreSpec(
        ...         name="margin", factory="my_package.scores:margin", summary="Mean margin."
        ...     )
        >>> daptkit_scores().higher_is_better
        True
    """


@hookspec
def daptkit_event(event: Event) -> None:
    """Hear what happens in a run; entry-point group ``daptkit.events``, one entry per listener.

    An implementation that raises is reported once and switched off; the run goes on.

    Example:
        >>> from daptkit.plugin import Event, hookimpl
        >>> @hookimpl
        ... def daptkit_event(event):
        ...     print(event.kind, event.step, event.values)
        >>> daptkit_event(event=Event(kind="log", step=50, values={"loss": 0.5}))
        log 50 {'loss': 0.5}
    """
