"""Learners that compare queries with examples, or solve for a head."""
