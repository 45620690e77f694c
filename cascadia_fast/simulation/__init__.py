"""A plan on trial: the whole cascade simulated request by request, and what the run says of it."""

from cascadia_fast.simulation.run import Simulation as Simulation
from cascadia_fast.simulation.run import simulate as simulate

__all__ = ["Simulation", "simulate"]
