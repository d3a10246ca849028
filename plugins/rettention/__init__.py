"""Re-ttention: windowed attention, corrected with statistics of earlier dense steps."""
