"""Drivers: flags, files, prints and pictures around the pure functions of metajax."""
