"""``python -m hasten.pipelines.mini``."""

from hasten.pipelines.mini._cli import app

app(prog_name="python -m hasten.pipelines.mini")
