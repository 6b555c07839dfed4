"""Lifelong learning: agents that meet one task after another and share what they have learnt through a hub."""
