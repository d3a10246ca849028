"""Pure functions that say what runs when, and at which size: no module, no pipeline, no state."""
