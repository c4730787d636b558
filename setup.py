"""The packages of the wheel: every folder with an `__init__.py`, as ``posttrain.<folder>``."""

from setuptools import find_packages, setup

NOT_PACKAGED = ("tests*", "scripts*", "docs*")

setup(
    packages=[f"posttrain.{name}" for name in find_packages(exclude=NOT_PACKAGED)],
    package_dir={"posttrain": "."},
)
