"""Packages of the wheel, where the drivers are `metajax.experiments`; everything else is in setup.cfg."""

from setuptools import find_packages, setup

# In the checkout, experiments stays beside metajax; it imports itself relatively, hence under either name.
drivers = ["metajax." + name for name in find_packages(include=["experiments*"])]
setup(
    packages=find_packages(include=["metajax*"]) + drivers,
    package_dir={"metajax.experiments": "experiments"},
)
