"""The tabular worlds of the policy reciprocity paper: Blocker, Landmarks, Navigation; each has a PettingZoo face."""
