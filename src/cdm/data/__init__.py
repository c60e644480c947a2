"""Images in: folders, zips and the built-in letters become arrays, and arrays become training batches."""
