"""What a process says of its databases over HTTP: probes, metrics and pages."""
