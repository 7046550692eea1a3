"""Arrays in chunks: which part of which block each chunk of a result is made from (integers), and the graph of that."""
