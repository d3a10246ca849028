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


def _packages() -> list[str]:
    names = []
    for package, folder in FOLDERS.items():
        names.append(package)
        names.extend(f"{package}.{child}" for child in find_packages(folder))
    return names


setup(
    packages=_packages(),
    package_dir=FOLDERS,
    package_data={
        "": [
            "py.typed",
            "**/*.json",
            "**/*.safetensors",
            "**/*.md",
            "**/*.txt",
            "**/*.png",
            "**/*.jsonl",
            "**/*.html",
            "**/*.css",
            "**/*.js",
        ]
    },
    include_package_data=False,
)
