"""Questions to DPO, one file each: `python -m experiments.sweep --experiment=dpo`."""
