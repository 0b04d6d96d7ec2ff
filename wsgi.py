"""The application for WSGI servers: ``gunicorn wsgi:app``."""

from aurum_harmony import create_app

app = create_app()
