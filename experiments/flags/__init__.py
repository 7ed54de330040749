"""Options: declared, parsed, checked."""
