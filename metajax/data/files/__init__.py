"""Image files: decoding to a common size and 8 bits, folders of classes, and notes on changes for people."""
