"""Whole-run and kernel measurements, beside the peers."""
