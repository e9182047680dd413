"""From files to the features that metrics compare: decoding in threads, networks in batches of one shape."""
