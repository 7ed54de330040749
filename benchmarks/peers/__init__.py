"""One meta-step in metajax and in other libraries."""
