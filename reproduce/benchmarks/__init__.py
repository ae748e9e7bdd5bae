"""Measure speed, memory and resuming, each by a command; results/ holds the results."""
