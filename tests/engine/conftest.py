"""Hypothesis in this folder: no deadline an example (a busy machine is no bug), and a run under half a minute."""

from hypothesis import HealthCheck, settings

settings.register_profile("engine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("engine")
