"""ONNX programs of JAX functions: one trace, constants folded, symbolic sizes, loops as loops."""

from metajax.deploy.onnx.walk import to_onnx

__all__ = ["to_onnx"]
