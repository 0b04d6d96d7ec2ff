"""What boot does, decided in one place: boot follows it, and ``status`` predicts by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from .flag import FlagVerdict
    from .plan import Plan


class Step(NamedTuple):
    """What boot does next.

    :ivar action: ``"off"``, ``"skip"`` (the flag is enough), ``"verify"`` (the databases hold everything),
        ``"migrate"``, ``"stop"`` (they do not, and the mode does not allow to migrate), or ``"ask"``: the flag, or,
        where that was asked already, the databases.
    :ivar reason: why, in words.
    """

    action: Literal["off", "skip", "verify", "migrate", "stop", "ask"]
    reason: str


def decide(mode: str, force: str | None, verdict: FlagVerdict | None = None, plans: list[Plan] | None = None) -> Step:
    """What boot does by what it knows so far. Boot follows this, and ``status`` predicts by it.

    :param mode: ``DB_SMART_BOOT``.
    :param force: why everything is to run again; ``None`` where it is not.
    :param verdict: what the flag says; ``None`` where it was not asked yet.
    :param plans: what the databases hold; ``None`` where they were not asked yet.
    """
    if mode == "off":
        return Step("off", "DB_SMART_BOOT is off")
    if force is not None and mode == "migrate":
        return Step("migrate", force)
    if verdict is None:
        return Step("ask", "")
    if verdict.holds:
        return Step("skip", verdict.reason)
    if plans is None:
        return Step("ask", verdict.reason)
    behind = [plan for plan in plans if plan.behind]
    reason = "; ".join([verdict.reason, *(plan.clause for plan in behind or plans)])
    return Step("verify" if not behind else "migrate" if mode == "migrate" else "stop", reason)
