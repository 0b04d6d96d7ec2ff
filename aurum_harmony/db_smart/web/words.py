"""Figures as one says them."""

from __future__ import annotations


def span(seconds: float) -> str:
    """How long something takes or took."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{round(hours / 24)} days"
