"""Measurements of the engine's own programs beside what the machine allows."""
