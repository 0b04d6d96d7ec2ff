"""What boot does, decided in one place: boot follows it, and ``status`` predicts by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .flag import FlagVerdict
    from .plan import Plan


class Step:
    """What boot does next.

    :ivar action: ``"off"``, ``"skip"`` (the flag is enough), ``"verify"`` (the databases hold everything),
        ``"migrate"``, ``"stop"`` (they do not, and the mode does not allow to migrate), or ``"ask"``: the flag, or,
        where that was asked already, the databases.
    :ivar reason: why, in words.
    """

    # No named tuple, which takes longer to define than a tenth of a boot.
    def __init__(self, action: Literal["off", "skip", "verify", "migrate", "stop", "ask"], reason: str) -> None:
        self.action = action
        self.reason = reason


def decide(mode: str, force: str | None, verdict: FlagVerdict | None = None, plans: list[Plan] | None = None) -> Step:
    """What boot does by what it knows so far. Boot follows this, and ``status`` predicts by it.

    :param mode: ``DB_SMART_BOOT``; in the background as otherwise.
    :param force: why everything is to run again; ``None`` where it is not.
    :param verdict: what the flag says; ``None`` where it was not asked yet.
    :param plans: what the databases hold; ``None`` where they were not asked yet.
    """
    may_migrate = mode in ("migrate", "background")
    if mode == "off":
        return Step("off", "DB_SMART_BOOT is off")
    if force is not None and may_migrate:
        return Step("migrate", force)
    if verdict is None:
        return Step("ask", "")
    if verdict.holds:
        return Step("skip", verdict.reason)
    if plans is None:
        return Step("ask", verdict.reason)
    # Who only looks serves from what Alembic alone has brought there.
    behind = [plan for plan in plans if plan.blocks and not (mode == "check" and plan.adoptable)]
    reason = "; ".join([verdict.reason, *(plan.clause for plan in behind or plans)])
    return Step("verify" if not behind else "migrate" if may_migrate else "stop", reason)
