"""Checks of a pod slice that need no pod."""
