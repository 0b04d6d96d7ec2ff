"""Start AurumHarmony: migrate when something changed, then serve with Waitress on ``HOST`` and ``PORT``."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Boot the application and serve it until interrupted."""
    import click
    from flask.cli import load_dotenv
    from waitress import serve

    from aurum_harmony import create_app

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    load_dotenv()
    host = os.environ.get("HOST", "127.0.0.1")
    port = os.environ.get("PORT", "5000")
    if not port.isdecimal() or int(port) > 65535:
        sys.exit(f"PORT is {port!r}; it must be a number up to 65535.")
    try:
        app = create_app()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    try:
        serve(app, host=host, port=int(port))
    except (OSError, ValueError) as error:  # Waitress has a ValueError for a host that has no address
        sys.exit(f"Cannot serve on HOST {host!r}, PORT {port}: {error}. Choose others, or end what uses them.")


if __name__ == "__main__":
    # Run as a script, Python looks beside this file, not in the checkout that it belongs to.
    sys.path.insert(0, str(_ROOT))
    main()
