"""Foretells what pending migrations would lock, refuse and break, before they are deployed."""
