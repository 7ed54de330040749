"""Programs to read and copy; they import metajax alone."""
