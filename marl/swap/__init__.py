"""Reciprocity inside other people's libraries: a module for each that needs more than ``marl.reciprocity``."""
