"""Map the top-level folders below the import name ``hasten`` and list every sub-package.

The list is computed because a sub-package that is missing from a hand-kept list disappears from the wheel
without a word.
"""

from setuptools import find_packages, setup

FOLDERS = {
    "hasten": "sdk",
    "hasten.plugins": "plugins",
    "hasten.pipelines": "pipelines",
    "hasten.schedules": "schedules",
    "hasten.eval": "eval",
}

DATA = ("pyi", "json", "jsonl", "yaml", "safetensors", "md", "txt", "png", "html", "css", "js")
"""Kinds of files that belong to the packages, besides Python files."""


def _packages() -> list[str]:
    names = []
    for package, folder in FOLDERS.items():
        names.append(package)
        names.extend(f"{package}.{child}" for child in find_packages(folder))
    return names


setup(
    packages=_packages(),
    package_dir=FOLDERS,
    package_data={"": ["py.typed", *(f"**/*.{kind}" for kind in DATA)]},
    include_package_data=False,
)
