"""The version, readable without importing the application."""

__version__ = "1.0.0"
