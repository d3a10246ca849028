"""Re-ttention: windowed attention, corrected by what dense attention said a few steps ago."""
