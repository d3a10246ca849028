"""What no test has tried, in the words of a refusal."""

RESIZING = "its loop was not tried with latents that change size between two steps"
