"""Probes, metrics and pages, and the boot in the background."""
