"""A stand-in for the package SMAC where the game is not to be had: ``smac.env.StarCraft2Env``, nothing else."""
