"""One meta-step in metajax and in other libraries: a module per peer, with a function `make(case)`."""
