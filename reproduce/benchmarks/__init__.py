"""Measurements of speed, memory and resuming, each a command; results/ holds what they found."""
