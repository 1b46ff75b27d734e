"""Configs of experiments.sppo."""
