"""Trainings compiled for a pod of TPUs without one: memory, time and messages of a meta-step."""
